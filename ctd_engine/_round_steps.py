"""What comes before and after each model call of a run, and which implementation of it runs."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from ctd_engine._cpp_steps import CppSteps
from ctd_engine._far_points import far_points
from ctd_engine._request import Request
from ctd_engine._run_settings import RoundSettings
from ctd_engine._trajectory import TrajectoryStore
from ctd_engine._windows import to_tensors, to_windows
from ctd_engine.result import RoundRecord
from ctd_engine.scheduling import Finished, RoundPlan, make_scheduler
from ctd_engine.scheduling.sizes import Sizes

__all__ = ["PlannedSteps", "Steps", "make_steps"]


class Steps(Protocol):
    """One round after the other: `begin`, a model call, `correct`, `advance`."""

    @property
    def num_rows(self) -> int:
        """Rows of the next round, 0 once all samples have ended."""
        ...

    @property
    def num_left_behind(self) -> int:
        """Nodes that the windows of the next round have left behind, of all open samples."""
        ...

    def plan(self) -> RoundPlan | None:
        """The next round; None once all samples have ended."""
        ...

    def begin(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Open the windows: model inputs [copies * rows, D], times alike, whose rows [rows]."""
        ...

    def correct(self, m: torch.Tensor, m_null: torch.Tensor | None, guidance_scale: float) -> None:
        """One Picard iteration of every window, from outputs [rows, D]; no device is waited for."""
        ...

    def advance(self) -> list[Finished]:
        """Move the windows past what was accepted; the samples that ended."""
        ...

    def cancel(self) -> list[Finished]:
        """End every sample that has not ended."""
        ...

    def history(self) -> list[RoundRecord]:
        """The windows of every round so far."""
        ...


class PlannedSteps:
    """A scheduler on the host and operations on any device, for every table and noise."""

    def __init__(
        self, request: Request, settings: RoundSettings, store: TrajectoryStore, sizes: Sizes
    ) -> None:
        self._request = request
        self._settings = settings
        self._store = store
        self._scheduler = make_scheduler(**sizes, backend=settings.scheduler_backend)
        self._in_slot = np.full(sizes["num_slots"], -1)
        self._history: list[RoundRecord] = []

    @property
    def num_rows(self) -> int:
        """Rows of the next round, 0 once all samples have ended."""
        plan = self.plan()
        return 0 if plan is None else len(plan.row_slot)

    @property
    def num_left_behind(self) -> int:
        """Nodes that the windows of the next round have left behind."""
        plan = self.plan()
        return 0 if plan is None else int(plan.start.sum())

    def plan(self) -> RoundPlan | None:
        """The next round; None once all samples have ended."""
        return self._scheduler.plan()

    def begin(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Open the windows: model inputs, times, and whose rows they are."""
        plan = self.plan()
        if plan is None:
            raise RuntimeError("every sample has ended: there is no further round")
        device = self._settings.device
        for slot, entrant in zip(plan.slot, plan.sample, strict=True):
            if self._in_slot[slot] != entrant:
                self._in_slot[slot] = entrant
                self._store.admit(int(slot), self._request.initial(int(entrant)))
        self._store.guess(plan)
        self._plan = plan
        self._windows = windows = to_windows(plan, device)
        self._sample, row_sample = to_tensors((plan.sample, plan.row_sample), device)
        self._far = far = far_points(plan, self._settings.dtype, device)
        slot, node = (windows.row_slot, windows.row_node) if far is None else (far.slot, far.node)
        self._point_sample = row_sample if far is None else self._sample[windows.row_entry]
        x, t = self._store.model_rows(slot, node, self._settings.model_dtype)
        copies = self._request.denoiser.evaluations_per_row
        if copies > 1:
            x, t = torch.cat([x] * copies), torch.cat([t] * copies)
        return x, t, row_sample

    def correct(self, m: torch.Tensor, m_null: torch.Tensor | None, guidance_scale: float) -> None:
        """One Picard iteration of every window."""
        self._moves = self._store.update(
            self._windows, self._sample, self._point_sample, m, m_null, guidance_scale, self._far
        )

    def advance(self) -> list[Finished]:
        """Move the windows past what was accepted; the samples that ended."""
        plan = self._plan
        # sync: the scheduler runs on the host and needs every window's advance
        moves = [move.numpy(force=True) for move in self._moves if move is not None]
        finished = self._scheduler.step(*moves)
        self._history.append(RoundRecord(plan.sample, plan.start, plan.length))
        return finished

    def cancel(self) -> list[Finished]:
        """End every sample that has not ended."""
        return self._scheduler.cancel()

    def history(self) -> list[RoundRecord]:
        """The windows of every round so far."""
        return self._history


def make_steps(
    request: Request, settings: RoundSettings, store: TrajectoryStore, sizes: Sizes
) -> Steps:
    """In C++ where states are on the CPU and all is linear, else step by step."""
    if CppSteps.serves(settings, store):
        return CppSteps(request, settings, store, sizes)
    return PlannedSteps(request, settings, store, sizes)
