"""Times on a GPU: what the device takes, apart from the time that the host takes to ask for it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from op_cases import OpCase

# several times the second-level cache of the largest GPUs
FLUSH_BYTES = 256 * 2**20
REPEATS = 50
# of the host's time, which the flushes before a call have to outlast
MARGIN = 1.5
MAX_FLUSHES = 64


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call.

    `median_us`, `p20_us`, `p80_us`: on the device, from a cold cache. `host_us`: until the call
    returns to an idle host. `is_captured`: the device replayed a CUDA graph of the call; otherwise
    its kernels were launched one by one behind work that outlasts their launches, and a call that
    waits for the device in its middle still has the host's time in its own.
    """

    median_us: float
    p20_us: float
    p80_us: float
    host_us: float
    is_captured: bool


def _quantiles(microseconds: list[float]) -> tuple[float, float, float]:
    values = torch.tensor(microseconds, dtype=torch.float64)
    median, p20, p80 = (float(values.quantile(q)) for q in (0.5, 0.2, 0.8))
    return median, p20, p80


@contextmanager
def _no_waiting() -> Iterator[None]:
    # a capture that meets a wait leaves torch's generator in a capture: look before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def capture(call: Callable[[], Any]) -> torch.cuda.CUDAGraph | None:
    """A CUDA graph of a call that has run before, or None where it cannot be captured."""
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), _no_waiting():
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph


def host_time(call: Callable[[], Any], repeats: int = 20) -> float:
    """Median microseconds until a call returns, on an idle device."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - begin))
    torch.cuda.synchronize()
    return _quantiles(times)[0]


def _flush_time(buffer: torch.Tensor) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    buffer.zero_()
    begin.record()
    for _ in range(10):
        buffer.zero_()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * begin.elapsed_time(end) / 10


def device_times(call: Callable[[], Any], host_us: float, repeats: int = REPEATS) -> list[float]:
    """Microseconds of a call on the device between two events, from a full queue and a cold cache.

    On an idle device the events would see the host's launches. Clearing a large buffer before each
    call gives the device work until the call and both events are in its queue, and empties the
    second-level cache, whose lines are as dirty before the call as the call leaves them.
    """
    buffer = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")
    flushes = min(1 + int(MARGIN * host_us / _flush_time(buffer)), MAX_FLUSHES)
    events = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(flushes):
            buffer.zero_()
        begin.record()
        call()
        end.record()
        events.append((begin, end))
    torch.cuda.synchronize()
    return [1e3 * begin.elapsed_time(end) for begin, end in events]


def time_call(call: Callable[[], Any]) -> Timing:
    """Time one call, captured where it can be."""
    # what a first call sets up belongs to no measurement
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    host_us = host_time(call)
    graph = capture(call)
    timed, timed_host_us = call, host_us
    if graph is not None:
        timed, timed_host_us = graph.replay, host_time(graph.replay)
    median, p20, p80 = _quantiles(device_times(timed, timed_host_us))
    return Timing(median, p20, p80, host_us, graph is not None)


def measure(case: OpCase, call: Callable[[dict[str, Any]], Any]) -> Timing:
    """Time a provider's call of a case.

    One set of inputs serves: the cleared cache makes rotating them needless.
    """
    inputs = case.make("cuda", 0)
    return time_call(lambda: call(inputs))


def copy_bandwidth() -> float:
    """Gigabytes per second of a copy of 1 GiB, read and write counted."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / time_call(lambda: target.copy_(source)).median_us / 1e3
