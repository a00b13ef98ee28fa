"""What a round costs: the model's time against its rows, and the sampler's own, both measured."""

from __future__ import annotations

import threading
import time as _time
import weakref
from bisect import bisect_left
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

from ctd_engine._graphs import recording

__all__ = ["RoundTimes", "RowTimes", "cached_for", "measure_rows"]

# a doubling of the rows that takes this much longer, twice in a row, goes on like that
LINEAR = 1.75
# calls of one size: enough to drop a disturbed one, few where a call is long
REPEATS, LONG_CALL_S = 3, 0.25
# on a GPU: the first run, one that looks for waits, and the recording
WARM_UPS_ON_CUDA = 3


@dataclass(frozen=True)
class RowTimes:
    """Seconds of one model call at some numbers of rows; linear between them and beyond."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __call__(self, rows: float) -> float:
        """Seconds of a call with this many rows."""
        if len(self.rows) == 1:
            return self.seconds[0] * max(1.0, rows / self.rows[0])
        right = min(max(bisect_left(self.rows, rows), 1), len(self.rows) - 1)
        (x0, x1), (y0, y1) = self.rows[right - 1 : right + 1], self.seconds[right - 1 : right + 1]
        # a small disturbance must not make more rows look faster
        return y0 + max(0.0, y1 - y0) / (x1 - x0) * (rows - x0)


@dataclass(frozen=True)
class RoundTimes:
    """Seconds of a round: the model's for so many rows, and the sampler's own work."""

    model: Callable[[float], float]
    fixed_s: float
    per_point_s: float
    per_row_s: float

    def __call__(self, rows: float, length: float) -> float:
        """Seconds of a round of so many rows, in windows of so many points."""
        own = self.fixed_s + self.per_point_s * length + self.per_row_s * rows
        return self.model(rows) + own


def measure_rows(call: Callable[[int], object], max_rows: int, device: torch.device) -> RowTimes:
    """Time `call(rows)` at powers of two up to `max_rows`, and at `max_rows`.

    Stops early where time has become linear in the rows, so that a slow model on a full device is
    called with few rows only.
    """

    def seconds(rows: int) -> float:
        wait = torch.cuda.synchronize if device.type == "cuda" else _nothing
        best = float("inf")
        # what the first calls set up, compile or record does not count
        for _ in range(WARM_UPS_ON_CUDA if device.type == "cuda" else 1):
            call(rows)
        for _ in range(REPEATS):
            with recording:
                wait(device)  # sync: a measurement, made once per model
                begin = _time.perf_counter()
                call(rows)
                wait(device)
            taken = _time.perf_counter() - begin
            best = min(best, taken)
            if taken > LONG_CALL_S:
                break
        return best

    sizes, times, linear = [1], [seconds(1)], 0
    while sizes[-1] < max_rows and linear < 2:
        sizes.append(min(2 * sizes[-1], max_rows))
        times.append(seconds(sizes[-1]))
        is_doubling = sizes[-1] == 2 * sizes[-2]
        linear = linear + 1 if is_doubling and times[-1] > LINEAR * times[-2] else 0
    return RowTimes(tuple(sizes), tuple(times))


def _nothing(_: torch.device) -> None:
    pass


_lock, _measuring = threading.Lock(), threading.Lock()
_of_models: weakref.WeakKeyDictionary[Any, dict[Hashable, Any]] = weakref.WeakKeyDictionary()


def cached_for(model: object, key: Hashable, make: Callable[[], RoundTimes]) -> RoundTimes:
    """What was measured for this model and key, or a new measurement; forgotten with the model."""
    try:
        with _lock:
            known = _of_models.setdefault(model, {})
    except TypeError:
        # an object that cannot be referred to weakly, or has no hash
        return make()
    # one at a time: two measurements would disturb each other
    with _measuring:
        if key not in known:
            known[key] = make()
        found: RoundTimes = known[key]
    return found
