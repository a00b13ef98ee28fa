"""CUDA graphs: what a function enqueues for a size is recorded once and enqueued in one call."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["GraphSwitch", "GraphedCalls", "WaitFinder", "recording"]

logger = logging.getLogger("ctd_engine")

# nobody else may synchronise the device or give memory back while one records
recording = threading.RLock()

# operators that hand a value, or a size that depends on values, to the host
WAITING = (
    "_local_scalar_dense",
    "_unique",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "repeat_interleave.Tensor",
    "unique",
)
COPYING = ("_to_copy", "copy_", "cpu", "cuda", "to")
INDEXING = ("index", "index_put", "index_put_")


class GraphSwitch:
    """Whether rounds are recorded; switched off for good by the first that cannot be."""

    def __init__(self, is_on: bool) -> None:
        self.is_on = is_on
        self._has_spared = False

    def off(self, reason: str) -> None:
        """Switch off, and say why the first time."""
        if self.is_on:
            self.is_on = False
            _tell(reason)

    def spared(self, reason: str) -> GraphSwitch:
        """A switch that is off, for one run among others; says why the first time."""
        if not self._has_spared:
            self._has_spared = True
            _tell(reason)
        return GraphSwitch(False)


def _tell(reason: str) -> None:
    logger.warning("running without CUDA graphs, which cannot hold this run: %s", reason)


class WaitFinder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks for operators in this thread that wait for the device.

    A recording that is broken off leaves torch's allocator and generator in the middle of it, so
    the calls are looked at before they are recorded. `found` names the first such operator.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: str | None = None

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0]
        waits = (
            func.__name__.startswith(WAITING)
            or (name in COPYING and len(_device_types(args, out)) > 1)
            or (name in INDEXING and _has_mask(args[1]))
        )
        if self.found is None and waits:
            self.found = f"it calls {name}, which waits for the device"
        return out


def _device_types(args: tuple[Any, ...], out: Any) -> set[str]:
    return {value.device.type for value in (*args, out) if isinstance(value, torch.Tensor)}


def _has_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype == torch.bool for index in indices)


class GraphedCalls:
    """`call(size)`: run the first time of a size, recorded the second, replayed from then on.

    The first run compiles kernels and sets up libraries, which a recording may not; the first
    recording of all is preceded by a run that looks for waits. What `call` reads and writes beyond
    its own run must stay where it is, and it must not wait for the device. If it cannot be recorded
    it goes on to run as it is, and the log says once why.

    Args:
        call: enqueues the work of a size on the current stream.
        device: where.
        switch: off runs every call as it is; shared by all calls of one model.
    """

    def __init__(
        self, call: Callable[[int], object], device: torch.device, switch: GraphSwitch
    ) -> None:
        self._call = call
        self._device = device
        self._switch = switch if device.type == "cuda" else GraphSwitch(False)
        self._stream: torch.cuda.Stream | None = None
        self._has_looked = False
        # None: has run once
        self._graphs: dict[int, torch.cuda.CUDAGraph | None] = {}

    def __call__(self, size: int) -> None:
        """Enqueue the work of a size once."""
        graph = self._graphs.get(size)
        if graph is None and self._switch.is_on and size in self._graphs and self._has_looked:
            graph = self._record(size)
        if graph is not None:
            graph.replay()
        elif self._switch.is_on:
            self._run(size)
        else:
            self._call(size)

    def _run(self, size: int) -> None:
        # copies of weights that autocast keeps are gone when a recording is replayed
        keeps = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            if size in self._graphs:
                with WaitFinder() as finder:
                    self._call(size)
                self._has_looked = True
                if finder.found is not None:
                    self._switch.off(finder.found)
            else:
                self._call(size)
                self._graphs[size] = None
        finally:
            torch.set_autocast_cache_enabled(keeps)

    def _record(self, size: int) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream(self._device)
        keeps = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            with recording:
                if self._stream is None:
                    self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
                    # graphs that never run at once, and hand nothing on, share their memory
                    self._pool = torch.cuda.graph_pool_handle()
                # a workspace of its own, which no other graph uses at the same time
                torch._C._cuda_clearCublasWorkspaces()
                # only this thread is watched: others may allocate meanwhile
                with torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._stream,
                    capture_error_mode="thread_local",
                ):
                    self._call(size)
        except Exception as error:
            # the end of a broken recording raises an error of its own
            first = error.__context__ or error
            # whatever it was, the call runs as it is next, and raises what is an error
            self._switch.off(str(first).partition("\n")[0] or type(first).__name__)
            return None
        finally:
            torch.set_autocast_cache_enabled(keeps)
            # a broken recording does not find its way back
            torch.cuda.set_stream(before)
        self._graphs[size] = graph
        return graph
