"""Samples of a trained model, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctd_engine import schedules
from ctd_engine.denoiser import Model
from ctd_engine.experiments.problems import Problem
from ctd_engine.experiments.settings import SamplerSettings
from ctd_engine.sampler import ParallelSampler, SequentialSampler

__all__ = ["Drawn", "draw"]

# all losses get the same noise, so that they differ by what they learned
_SEEDS_APART = 1_000_000
_ROWS = 40_000
_LOCKSTEP_BATCH = 50


@dataclass(frozen=True)
class Drawn:
    """Samples [B, *shape], their labels, and the means over samples of rounds and evaluations.

    `num_failed` of them did not converge.
    """

    samples: Tensor
    labels: Tensor | None
    rounds: float
    evaluations: float
    num_failed: int


def draw(model: Model, problem: Problem, settings: SamplerSettings, seed: int) -> Drawn:
    """Sample a model that predicts epsilon on the linear-beta schedule.

    Samples are drawn in batches that suit a CPU's caches; every sample has its own seed and, other
    than in lockstep, its own window, so that the batches change nothing.
    """
    sampler, batch = _make_sampler(model, problem, settings)
    count = settings.num_samples
    labels = None if problem.labels is None else problem.labels(count)
    samples, rounds, evaluations, num_failed = [], 0.0, 0.0, 0
    for first in range(0, count, batch):
        index = torch.arange(first, min(first + batch, count))
        result = sampler.sample(
            len(index),
            seeds=(_SEEDS_APART * (seed + 1) + index).tolist(),
            cond=None if labels is None else {"label": labels[index]},
        )
        samples.append(result.samples)
        rounds += float(result.stats.rounds_per_sample.sum())
        evaluations += float(result.stats.evaluations_per_sample.sum())
        num_failed += sum(reason.name != "CONVERGED" for reason in result.stop_reasons)
    return Drawn(torch.cat(samples), labels, rounds / count, evaluations / count, num_failed)


def _make_sampler(
    model: Model, problem: Problem, settings: SamplerSettings
) -> tuple[ParallelSampler | SequentialSampler, int]:
    options: dict[str, Any] = dict(
        shape=tuple(problem.data.x.shape[1:]),
        schedule=schedules.linear_beta(),
        solver=settings.solver,
        num_steps=settings.num_steps,
        clip_x0=problem.clip_x0,
    )
    if settings.window_size is None:
        return SequentialSampler(model, **options), min(settings.num_samples, _ROWS)
    batch = max(1, _ROWS // settings.window_size)
    if settings.lockstep:
        batch = _LOCKSTEP_BATCH
    sampler = ParallelSampler(
        model,
        **options,
        window_size=settings.window_size,
        tolerance=settings.tolerance,
        guess="copy" if settings.lockstep else "predicted",
        lockstep=settings.lockstep,
        max_rows=batch * settings.window_size,
    )
    return sampler, batch
