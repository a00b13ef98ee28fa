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
from ctd_engine.scheduling import Finished, RoundPlan, make_scheduler
from ctd_engine.scheduling.sizes import Sizes
from ctd_engine.solvers import SolverTable

__all__ = [
    "REASONS",
    "Outcome",
    "RoundSettings",
    "Rounds",
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


class Rounds:
    """The rounds of one request, one after the other: `begin`, a model call, `correct`, `advance`.

    Between `begin` and `correct` the model is called on the rows that `begin` returns; rows of
    several requests may share that call. All decisions depend on the request and its settings
    alone, never on what else is in the call.
    """

    def __init__(self, request: Request, settings: RoundSettings) -> None:
        num_slots = num_slots_for(settings, request.num_samples)
        sizes = scheduler_sizes(settings, request.num_samples, num_slots)
        self.request = request
        self.ends: list[Finished] = []
        self._settings = settings
        self._num_nodes = settings.table.num_nodes
        self._scheduler = make_scheduler(**sizes, backend=settings.scheduler_backend)
        self._store = make_store(request, settings, num_slots)
        self._samples = request.empty_samples()
        self._history: list[RoundRecord] = []
        self._evaluations = 0
        self._reader = PointReader(request, self._store) if settings.tells_points else None
        self._in_slot = np.full(num_slots, -1)

    def plan(self) -> RoundPlan | None:
        """The windows of the next round; None when every sample has ended."""
        return self._scheduler.plan()

    def begin(self, plan: RoundPlan) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Open the planned windows: model inputs [rows, D], times [rows], and samples [rows]."""
        device = self._settings.device
        for slot, entrant in zip(plan.slot, plan.sample, strict=True):
            if self._in_slot[slot] != entrant:
                self._in_slot[slot] = entrant
                self._store.admit(int(slot), self.request.initial(int(entrant)))
        self._store.guess(plan)
        self._plan = plan
        self._windows = to_windows(plan, device)
        self._sample, self._row_sample = (
            torch.from_numpy(values).to(device) for values in (plan.sample, plan.row_sample)
        )
        x, t = self._store.model_rows(self._windows, self._settings.model_dtype)
        return x, t, self._row_sample

    def correct(self, m: torch.Tensor, m_null: torch.Tensor | None) -> None:
        """One Picard iteration of every window, from the model's outputs; nothing waits."""
        self._moves = self._store.update(
            self._windows,
            self._sample,
            self._row_sample,
            m,
            m_null,
            self.request.denoiser.guidance_scale,
        )

    def advance(self) -> list[Finished]:
        """Move the windows past what was accepted; the samples that ended, with results kept."""
        plan = self._plan
        # sync: the scheduler runs on the host and needs every window's advance
        accepted, finite = (values.cpu().numpy() for values in self._moves)
        finished = self._scheduler.step(accepted, finite)
        self._history.append(RoundRecord(plan.sample, plan.start, plan.length))
        self._evaluations += len(plan.row_slot)
        self._keep(finished)
        return finished

    @property
    def num_points_final(self) -> int:
        """Points of all trajectories that no later round changes; those of ended samples count."""
        plan = self.plan()
        return self._num_nodes * len(self.ends) + (0 if plan is None else int(plan.start.sum()))

    def cancel(self) -> list[Finished]:
        """End every sample that has not ended; the best estimates so far are kept."""
        finished = self._scheduler.cancel()
        self._keep(finished)
        return finished

    def told(self) -> RoundProgress:
        """What a callback is told now."""
        if self._reader is not None:
            self._reader.move([end.sample for end in self.ends], self._num_nodes)
            if (plan := self.plan()) is not None:
                self._reader.move(plan.sample, plan.start)
        return RoundProgress(
            len(self._history),
            self._evaluations,
            len(self.ends),
            self.request.num_samples,
            None if self._reader is None else self._reader.points(),
        )

    def outcome(self) -> Outcome:
        """What came of it, once every sample has ended."""
        if self._reader is not None:
            self._reader.close()
        is_kept = self._settings.keep_trajectory
        return Outcome(
            self._samples,
            sorted(self.ends, key=lambda end: end.sample),
            self._history,
            self._evaluations,
            self._store.state_bytes,
            trajectory=self._store.trajectory(self.request.starts()) if is_kept else None,
        )

    def _keep(self, finished: list[Finished]) -> None:
        for end in finished:
            reason = REASONS[end.reason]
            if reason is StopReason.CONVERGED:
                self._samples[end.sample] = self._store.state(end.slot, self._num_nodes)
            elif reason is not StopReason.DIVERGED and end.slot >= 0 and end.known >= 1:
                estimate = self._store.data_estimate(end.slot, end.known - 1)
                self._samples[end.sample] = estimate
        self.ends += finished


def run_rounds(
    request: Request,
    settings: RoundSettings,
    *,
    progress: bool = False,
    callback: Callback | None = None,
) -> Outcome:
    """Sample every trajectory of the request to its end; the host waits for every round."""
    rounds = Rounds(request, settings)
    points = request.num_samples * settings.table.num_nodes
    with tqdm(total=points, disable=not progress, unit="pt", desc="sampling") as bar:
        while (plan := rounds.plan()) is not None:
            rounds.correct(*request.denoiser(*rounds.begin(plan)))
            rounds.advance()
            bar.update(rounds.num_points_final - bar.n)
            if callback is not None and callback(rounds.told()) is True:
                rounds.cancel()
    return rounds.outcome()
