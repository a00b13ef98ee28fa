"""CUDA graphs: what a function enqueues for a size is recorded once and enqueued in one call."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

__all__ = ["GraphedCalls"]

logger = logging.getLogger("ctd_engine")


class GraphedCalls:
    """`call(size)`: run the first time of a size, recorded the second, replayed from then on.

    The first run compiles kernels and sets up libraries, which a recording may not. What `call`
    reads and writes beyond its own run must stay where it is, and it must not wait for the device.
    If it cannot be recorded it goes on to run as it is, and the log says once why.

    Args:
        call: enqueues the work of a size on the current stream.
        device: where.
        is_enabled: False runs every call as it is.
    """

    def __init__(
        self, call: Callable[[int], object], device: torch.device, is_enabled: bool
    ) -> None:
        self._call = call
        self._device = device
        self._is_enabled = is_enabled and device.type == "cuda"
        # graphs that never run at once, and hand nothing on, share one pool of memory
        self._pool = torch.cuda.graph_pool_handle() if self._is_enabled else None
        # None: has run once
        self._graphs: dict[int, torch.cuda.CUDAGraph | None] = {}

    def __call__(self, size: int) -> None:
        """Enqueue the work of a size once."""
        if self._is_enabled and size in self._graphs:
            graph = self._graphs[size] or self._record(size)
            if graph is not None:
                graph.replay()
                return
        self._call(size)
        self._graphs[size] = None

    def _record(self, size: int) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        try:
            # only this thread is watched: others may allocate and wait meanwhile
            with torch.cuda.graph(
                graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
            ):
                self._call(size)
        except Exception as error:
            # whatever it was, the call runs as it is next, and raises what is an error
            self._is_enabled = False
            # the end of a broken recording raises an error of its own
            first = error.__context__ or error
            reason = str(first).partition("\n")[0] or type(first).__name__
            logger.warning("running without CUDA graphs, which cannot hold this model: %s", reason)
            return None
        self._graphs[size] = graph
        return graph
