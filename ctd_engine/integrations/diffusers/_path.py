"""One parallel run of a pipeline's steps: what it needs to hold true, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ctd_engine.integrations.diffusers._calls import ModelCall
from ctd_engine.integrations.diffusers._mix import Mix
from ctd_engine.result import SampleStats

__all__ = ["Path", "check_callers", "check_inputs", "in_model_rows", "time_divisor"]


@dataclass(eq=False)
class Path:
    """The outcome of one parallel run: points of nodes `first` to `last`.

    `points` are [S, last - first + 1, *shape] in the precision of the solver, or the last alone.
    """

    first: int
    last: int
    calls: list[ModelCall]
    mix: Mix
    divisor: float
    points: Tensor
    dtype: torch.dtype
    served: int = 0

    def point(self, node: int) -> Tensor:
        """The latents of all rows of a step at a node, in the pipeline's dtype; always a copy."""
        at = min(node - self.first, self.points.shape[1] - 1)
        rows = self.points[:, at].to(self.dtype)
        return rows[self.mix.sample.to(rows.device)]

    def goes_on(self, node: int, calls: list[ModelCall], weights: Tensor, sample: Tensor) -> bool:
        """Whether the step from a node is the one that was taken: same latents, same question."""
        if not self.first < node < self.last or len(calls) != len(self.calls):
            return False
        if not torch.equal(weights, self.mix.weights):
            return False
        if not all(mine.is_like(call) for mine, call in zip(self.calls, calls, strict=True)):
            return False
        rows = self.mix.first.to(sample.device)
        # sync: one small comparison per step of a pipeline
        return _equal(sample[rows], self.point(node)[rows])


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def in_model_rows(stats: SampleStats, branches: int) -> SampleStats:
    """The same where every row that a sampler asked for was as many rows of the model."""
    return replace(
        stats,
        evaluations=stats.evaluations * branches,
        evaluations_per_sample=stats.evaluations_per_sample * branches,
        padding_rows=stats.padding_rows * branches,
    )


def check_callers(calls: list[ModelCall], weights: Tensor) -> None:
    """Every call of the model must have a part in what the step received."""
    end = 0
    for call in calls:
        begin, end = end, end + call.count
        if not bool(weights[:, begin:end].any()):
            raise RuntimeError(
                "the pipeline's model was called by something other than its step, such as a "
                "callback, and answered with a probe; call a copy of it there, or restore(pipe)"
            )


def check_inputs(calls: list[ModelCall], mix: Mix, expected: Tensor) -> None:
    """The model's inputs must be scaled latents and nothing else."""
    given = torch.cat([call.x for call in calls]) if len(calls) > 1 else calls[0].x
    for branch in mix.rows.T:
        x = given[branch.to(given.device)]
        if x.shape != expected.shape:
            raise ValueError(
                f"the model's input must have the shape of the latents {tuple(expected.shape)}, "
                f"got {tuple(x.shape)}; pipelines that append channels, such as inpainting, are "
                "not supported: restore(pipe)"
            )
        # sync: once per run
        error = float((x - expected).abs().max())
        if not error <= 0.02 * float(expected.abs().max()):
            raise ValueError(
                "the model's input must be the scaled latents, got other numbers; restore(pipe) "
                "and run this pipeline sequentially"
            )


def time_divisor(call: ModelCall, native: float) -> float:
    """By what the pipeline divides the scheduler's timestep: 1, or Flux's 1000."""
    given = float(call.time.flatten()[0])
    for divisor in (1.0, 1000.0):
        # half precision rounds times to three digits
        if abs(given * divisor - native) <= 0.01 * max(abs(native), 1e-3):
            return divisor
    raise ValueError(
        f"the model must be told the scheduler's timestep {native:g} or a thousandth of it, got "
        f"{given:g}; restore(pipe) and run this pipeline sequentially"
    )
