"""Samples that are drawn on many ranks, each its own, and gathered at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
import torch

from ctd_engine._ranks import Ranks
from ctd_engine._request import Request
from ctd_engine._run_settings import Outcome, RoundSettings
from ctd_engine.noise import CounterNoise, NoiseSource
from ctd_engine.result import RoundRecord

__all__ = ["run_samples"]


@dataclass(frozen=True)
class _LaterNoise:
    """The noise of samples from `first` on, under the numbers 0, 1, ..."""

    source: NoiseSource
    first: int

    def initial(self, samples: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self.source.initial(samples + self.first, dtype)

    def step(self, nodes: torch.Tensor, samples: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self.source.step(nodes, samples + self.first, dtype)


def part_of(request: Request, first: int, last: int) -> Request:
    """The request of samples first .. last - 1 alone."""
    seeds = request.seeds[first:last]
    noise: NoiseSource
    if isinstance(request.noise, CounterNoise):
        # kernels make it from the seeds
        noise = CounterNoise(seeds, request.num_elements, request.device)
    else:
        noise = _LaterNoise(request.noise, first)
    return replace(
        request,
        num_samples=last - first,
        seeds=seeds,
        x_init=None if request.x_init is None else request.x_init[first:last],
        noise=noise,
        denoiser=request.denoiser.part(first, last),
    )


def run_samples(
    request: Request, settings: RoundSettings, ranks: Ranks, run: Callable[[Request], Outcome]
) -> Outcome:
    """Run the r-th block of ceil(B / n) samples on rank r of n; all ranks get all samples.

    Nothing is exchanged before the end. A rank that fails is heard of there.
    """
    each = -(-request.num_samples // ranks.size)
    first = min(ranks.rank * each, request.num_samples)
    last = min(first + each, request.num_samples)
    mine = error = None
    try:
        # more ranks than samples leave some without any
        mine = run(part_of(request, first, last)) if first < last else None
    except Exception as caught:
        error = caught
    nothing = request.empty_samples()[:0]
    samples = nothing if mine is None else mine.samples
    # tensors go by themselves
    told = None if mine is None else replace(mine, samples=nothing, trajectory=None)
    words = ranks.settle(error, told)
    samples = _gathered(samples, each, ranks)[: request.num_samples]
    trajectory = None
    if settings.keep_trajectory:
        points = nothing.new_empty(0, settings.table.num_nodes + 1, request.num_elements)
        if mine is not None and mine.trajectory is not None:
            points = mine.trajectory
        trajectory = _gathered(points, each, ranks)[: request.num_samples]
    return _merged(words, each, samples, trajectory)


def _gathered(values: torch.Tensor, each: int, ranks: Ranks) -> torch.Tensor:
    # rows of all ranks, filled up to as many on each
    sent = values.new_zeros(each, *values.shape[1:])
    sent[: len(values)] = values
    received = sent.new_empty(ranks.size * each, *values.shape[1:])
    ranks.gather(received, sent)
    return received


def _merged(
    words: Sequence[Outcome | None],
    each: int,
    samples: torch.Tensor,
    trajectory: torch.Tensor | None,
) -> Outcome:
    """The runs of all ranks as one: round j of it is everybody's round j."""
    # numbers of samples in the whole request
    shifted = [(rank * each, word) for rank, word in enumerate(words) if word is not None]
    histories = [
        [replace(record, sample=record.sample + first) for record in word.history]
        for first, word in shifted
    ]
    ends = [end._replace(sample=end.sample + first) for first, word in shifted for end in word.ends]
    runs = [word for _, word in shifted]
    return Outcome(
        samples,
        ends,
        [_joined([r for r in records if r is not None]) for records in zip_longest(*histories)],
        sum(run.evaluations for run in runs),
        max(run.state_bytes for run in runs),
        sum(run.padding_rows for run in runs),
        trajectory,
    )


def _joined(records: list[RoundRecord]) -> RoundRecord:
    return RoundRecord(
        *(
            np.concatenate([getattr(r, name) for r in records])
            for name in ("sample", "start", "length")
        )
    )
