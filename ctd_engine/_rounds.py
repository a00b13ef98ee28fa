"""The rounds of a parallel run: plan, guess, gather, model, update, check, advance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from ctd_engine._final_points import PointReader
from ctd_engine._graphs import GraphSwitch
from ctd_engine._request import Request
from ctd_engine._trajectory import TrajectoryStore, to_windows
from ctd_engine.result import Callback, RoundProgress, RoundRecord, StopReason
from ctd_engine.scheduling import Finished, make_scheduler
from ctd_engine.scheduling.sizes import Sizes
from ctd_engine.solvers import SolverTable

__all__ = [
    "REASONS",
    "Outcome",
    "RoundSettings",
    "make_store",
    "num_slots_for",
    "run_rounds",
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
    times the smoothed points per round, at first `first_window` and never above `window_size`.
    """

    table: SolverTable
    window_size: int
    first_window: int
    window_ratio: int
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
        noise=request.noise,
        dtype=settings.dtype,
        device=settings.device,
        backend=settings.backend,
        num_recorded=request.num_samples if settings.keep_trajectory else 0,
        records_x0=settings.tells_points,
    )


def scheduler_sizes(settings: RoundSettings, num_samples: int, num_slots: int) -> Sizes:
    """Arguments of every window scheduler."""
    return {
        "num_samples": num_samples,
        "num_nodes": settings.table.num_nodes,
        "window_size": settings.window_size,
        "max_rows": settings.max_rows,
        "num_slots": num_slots,
        # a predicted guess needs an evaluation first; "zero" holds x0 = 0 before there is one
        "first_length": 1 if settings.guess == "predicted" else settings.window_size,
        "max_rounds": settings.max_rounds,
        "lockstep": settings.lockstep,
        "window_ratio": settings.window_ratio,
        "first_window": settings.first_window,
    }


def run_rounds(
    request: Request,
    settings: RoundSettings,
    *,
    progress: bool = False,
    callback: Callback | None = None,
) -> Outcome:
    """Sample every trajectory of the request to its end; the host waits for every round."""
    num_samples, nodes = request.num_samples, settings.table.num_nodes
    num_slots = num_slots_for(settings, num_samples)
    store = make_store(request, settings, num_slots)
    sizes = scheduler_sizes(settings, num_samples, num_slots)
    scheduler = make_scheduler(**sizes, backend=settings.scheduler_backend)
    samples = request.empty_samples()
    ends: list[Finished] = []
    history: list[RoundRecord] = []
    evaluations = 0
    reader = PointReader(request, store) if settings.tells_points else None
    in_slot = np.full(num_slots, -1)
    bar = tqdm(total=num_samples * nodes, disable=not progress, unit="pt", desc="sampling")
    with bar:
        while (plan := scheduler.plan()) is not None:
            bar.update(nodes * len(ends) + int(plan.start.sum()) - bar.n)
            for slot, entrant in zip(plan.slot, plan.sample, strict=True):
                if in_slot[slot] != entrant:
                    in_slot[slot] = entrant
                    store.admit(int(slot), request.initial(int(entrant)))
            store.guess(plan)
            windows = to_windows(plan, settings.device)
            sample, row_sample = (
                torch.from_numpy(values).to(settings.device)
                for values in (plan.sample, plan.row_sample)
            )
            x, t = store.model_rows(windows, settings.model_dtype)
            m, m_null = request.denoiser(x, t, row_sample)
            accepted, finite = store.update(
                windows, sample, row_sample, m, m_null, request.denoiser.guidance_scale
            )
            # sync: the scheduler runs on the host and needs every window's advance
            advance = accepted.cpu().numpy()
            finished = scheduler.step(advance, finite.cpu().numpy())
            history.append(RoundRecord(plan.sample, plan.start, plan.length))
            evaluations += len(x)
            if reader is not None:
                reader.move(plan.sample, plan.start + advance)
                reader.move([end.sample for end in finished], nodes)
            told = RoundProgress(
                len(history),
                evaluations,
                len(ends) + len(finished),
                num_samples,
                None if reader is None else reader.points(),
            )
            if callback is not None and callback(told) is True:
                finished += scheduler.cancel()
            for end in finished:
                _collect(end, store, samples, nodes)
            ends += finished
        bar.update(nodes * len(ends) - bar.n)
    if reader is not None:
        reader.close()
    ends.sort(key=lambda end: end.sample)
    trajectory = store.trajectory(request.starts()) if settings.keep_trajectory else None
    return Outcome(samples, ends, history, evaluations, store.state_bytes, trajectory=trajectory)


def _collect(end: Finished, store: TrajectoryStore, samples: torch.Tensor, nodes: int) -> None:
    reason = REASONS[end.reason]
    if reason is StopReason.CONVERGED:
        samples[end.sample] = store.state(end.slot, nodes)
    elif reason is not StopReason.DIVERGED and end.slot >= 0 and end.known >= 1:
        samples[end.sample] = store.data_estimate(end.slot, end.known - 1)
