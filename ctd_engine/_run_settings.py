"""What a parallel run needs beside its request, what comes of it, and the sizes of its parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ctd_engine import _checks
from ctd_engine._graphs import GraphSwitch
from ctd_engine._request import Request
from ctd_engine._trajectory import TrajectoryStore
from ctd_engine.result import RoundRecord, SampleResult, SampleStats, StopReason
from ctd_engine.scheduling import Finished
from ctd_engine.scheduling.sizes import Sizes
from ctd_engine.solvers import SolverTable
from ctd_engine.window_plan import WindowPlan

__all__ = [
    "REASONS",
    "Outcome",
    "RoundSettings",
    "checked_stride",
    "checked_window",
    "make_result",
    "make_store",
    "num_slots_for",
    "scheduler_sizes",
]

# the scheduler's codes, in its order
REASONS = (
    StopReason.CONVERGED,
    StopReason.MAX_ROUNDS,
    StopReason.DIVERGED,
    StopReason.CANCELLED,
)


@dataclass(frozen=True)
class RoundSettings:
    """What a run needs besides the request; the names are `ParallelSampler`'s.

    With `window_ratio` > 0 each sample's window follows its own advance: it is `window_ratio`/256
    times the smoothed points per round, at first `first_window` and never above `window_size`. With
    `far_stride` > 1 a round has fewer rows than points.
    """

    table: SolverTable
    window_size: int
    first_window: int
    window_ratio: int
    far_stride: int
    tolerance: float
    method: str
    guess: str
    max_rows: int
    max_rounds: int
    lockstep: bool
    dtype: torch.dtype
    model_dtype: torch.dtype
    device: torch.device
    backend: str | None
    scheduler_backend: str | None
    graphs: GraphSwitch
    keep_trajectory: bool = False
    tells_points: bool = False
    is_warm: bool = False


def checked_window(
    window_size: object, num_nodes: int, adaptive_window: float | None, lockstep: bool
) -> int | str:
    """`ParallelSampler`'s window_size, at most all nodes or "auto".

    Raises:
        ValueError, TypeError: it is neither, or does not go with the other two.
    """
    if isinstance(window_size, str) and window_size != "auto":
        raise ValueError(f'window_size must be "auto" or an integer >= 1, got {window_size!r}')
    if window_size == "auto" and lockstep:
        raise ValueError('lockstep needs a fixed window_size, got "auto"')
    if adaptive_window is not None and (window_size == "auto" or lockstep):
        raise ValueError(
            'adaptive_window needs a fixed window_size and no lockstep: "auto" follows the '
            "advance by itself, and in lockstep windows are whole"
        )
    if isinstance(window_size, str):
        return window_size
    return min(_checks.require_int("window_size", window_size, minimum=1), num_nodes)


def checked_stride(far_stride: int, table: SolverTable) -> int:
    """`ParallelSampler`'s far_stride.

    Raises:
        ValueError, TypeError: below 1 or no integer, or the model's variance is learned.
    """
    rule = table.rule
    if far_stride != 1 and rule is not None and rule.variance not in (None, "unused"):
        raise ValueError(
            "far_stride must be 1 for a model with a learned variance, which every step needs, "
            f"got {far_stride}"
        )
    return _checks.require_int("far_stride", far_stride, minimum=1)


@dataclass(frozen=True)
class Outcome:
    """What came of a run: samples [B, D], how each ended, and every round's windows.

    `trajectory` is [B, N + 1, D] where it was to be kept.
    """

    samples: torch.Tensor
    ends: list[Finished]
    history: list[RoundRecord]
    evaluations: int
    state_bytes: int
    padding_rows: int = 0
    trajectory: torch.Tensor | None = None


def num_slots_for(settings: RoundSettings, num_samples: int) -> int:
    """As many samples at a time as fill the batch with whole windows; lockstep needs all."""
    fitting = -(-settings.max_rows // settings.first_window)
    return num_samples if settings.lockstep else min(num_samples, fitting)


def make_store(request: Request, settings: RoundSettings, num_slots: int) -> TrajectoryStore:
    """Rings for so many samples at a time."""
    return TrajectoryStore(
        settings.table,
        num_slots=num_slots,
        window_size=settings.window_size,
        num_elements=request.num_elements,
        method=settings.method,
        guess=settings.guess,
        tolerance=settings.tolerance,
        is_published=settings.lockstep,
        noise=request.noise,
        dtype=settings.dtype,
        device=settings.device,
        backend=settings.backend,
        num_recorded=request.num_samples if settings.keep_trajectory else 0,
        records_x0=settings.tells_points,
        similar=request.trajectory,
        has_far_points=settings.far_stride > 1,
    )


def scheduler_sizes(settings: RoundSettings, num_samples: int, num_slots: int) -> Sizes:
    """Arguments of every window scheduler."""
    is_predicted = settings.guess == "predicted" and not settings.is_warm
    return {
        "num_samples": num_samples,
        "num_nodes": settings.table.num_nodes,
        "window_size": settings.window_size,
        "max_rows": settings.max_rows,
        "num_slots": num_slots,
        # a predicted guess needs an evaluation first; "zero" and "prior" have an x0 before
        "first_length": 1 if is_predicted else settings.window_size,
        "max_rounds": settings.max_rounds,
        "lockstep": settings.lockstep,
        "window_ratio": settings.window_ratio,
        "first_window": settings.first_window,
        "far_stride": settings.far_stride,
    }


def make_result(
    request: Request, outcome: Outcome, wall_time_s: float, plan: WindowPlan | None = None
) -> SampleResult:
    """What the user gets of an outcome."""
    cost = request.denoiser.evaluations_per_row
    stats = SampleStats(
        rounds=len(outcome.history),
        evaluations=outcome.evaluations * cost,
        wall_time_s=wall_time_s,
        rounds_per_sample=np.array([end.rounds for end in outcome.ends]),
        evaluations_per_sample=np.array([end.evaluations for end in outcome.ends]) * cost,
        state_bytes=outcome.state_bytes,
        window_history=outcome.history,
        plan=plan,
        padding_rows=outcome.padding_rows,
    )
    reasons = [REASONS[end.reason] for end in outcome.ends]
    return request.result(outcome.samples, stats, reasons, outcome.trajectory)
