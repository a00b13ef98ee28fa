"""Whether ranks share the samples or the rows of every round: by what is predicted to cost less."""

from __future__ import annotations

import math
import time as _time
from dataclasses import dataclass

import torch

from ctd_engine._ranks import Ranks
from ctd_engine._row_times import RoundTimes, RowTimes

__all__ = ["LinkTimes", "few_are_idle", "measure_link", "over_ranks"]

# a rank may have this many times the rows that an even split of all rows would give it
MOST_UNEVEN = 1.25
# an all-gather of few bytes per rank, and of many
FEW_BYTES, MANY_BYTES, REPEATS = 64, 2**20, 5


@dataclass(frozen=True)
class LinkTimes:
    """Seconds of an all-gather that ends with so many bytes on every rank."""

    latency_s: float
    per_byte_s: float

    def __call__(self, num_bytes: float) -> float:
        return self.latency_s + self.per_byte_s * num_bytes


def measure_link(ranks: Ranks) -> LinkTimes:
    """Time all-gathers of two sizes; the same answer on all ranks, that of the slowest."""

    def seconds(each: int) -> float:
        values = torch.zeros(each, dtype=torch.uint8, device=ranks.device)
        out = values.new_zeros(each * ranks.size)
        best = math.inf
        # the first one opens connections
        for _ in range(1 + REPEATS):
            begin = _time.perf_counter()
            ranks.gather(out, values)
            if ranks.device.type == "cuda":
                torch.cuda.synchronize(ranks.device)  # sync: a measurement, made once
            best = min(best, _time.perf_counter() - begin)
        return best

    few, many = (max(ranks.exchange(seconds(each))) for each in (FEW_BYTES, MANY_BYTES))
    per_byte = max(0.0, many - few) / ((MANY_BYTES - FEW_BYTES) * ranks.size)
    return LinkTimes(few, per_byte)


@dataclass(frozen=True)
class _SplitTimes:
    """Seconds of a model call whose rows are split: the longest block, and the gather of all."""

    model: RowTimes
    link: LinkTimes
    size: int
    evaluations_per_row: int
    row_bytes: int

    def __call__(self, rows: float) -> float:
        each = math.ceil(rows * self.evaluations_per_row / self.size)
        # the model was timed in rows of a round, which guidance doubles
        own = self.model(each / self.evaluations_per_row)
        return own + self.link(rows * self.evaluations_per_row * self.row_bytes)


def over_ranks(
    times: RoundTimes, link: LinkTimes, size: int, evaluations_per_row: int, row_bytes: int
) -> RoundTimes:
    """Seconds of a round whose rows are split; its other work is done on every rank."""
    model = times.model
    assert isinstance(model, RowTimes)
    return RoundTimes(
        _SplitTimes(model, link, size, evaluations_per_row, row_bytes),
        times.fixed_s,
        times.per_point_s,
        times.per_row_s,
    )


def few_are_idle(num_samples: int, size: int) -> bool:
    """Whether whole samples can be dealt out about evenly.

    Where nothing was measured this decides. Wrongly shared rows cost a gather per round; wrongly
    shared samples, where a model's time grows with its rows, as much as the ranks are uneven.
    """
    return size * math.ceil(num_samples / size) <= MOST_UNEVEN * num_samples
