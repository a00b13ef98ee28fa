"""The rounds of a parallel run: plan, guess, gather, model, update, check, advance."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from tqdm import tqdm

from ctd_engine._final_points import PointReader
from ctd_engine._model_calls import ModelInputs
from ctd_engine._request import Request
from ctd_engine._round_steps import make_steps
from ctd_engine._run_settings import (
    REASONS,
    Outcome,
    RoundSettings,
    make_store,
    num_slots_for,
    scheduler_sizes,
)
from ctd_engine.result import Callback, RoundProgress, StopReason
from ctd_engine.scheduling import Finished

__all__ = ["Rounds", "run_round", "run_rounds"]


class Rounds:
    """The rounds of one request, one after the other: `begin`, a model call, `correct`, `advance`.

    `run_round` puts them together, for one request or for several whose rows share the call. All
    decisions depend on the request and its settings alone, never on what else is in the call.
    """

    def __init__(self, request: Request, settings: RoundSettings) -> None:
        num_slots = num_slots_for(settings, request.num_samples)
        sizes = scheduler_sizes(settings, request.num_samples, num_slots)
        self.request = request
        self.ends: list[Finished] = []
        self._settings = settings
        self._num_nodes = settings.table.num_nodes
        self._store = make_store(request, settings, num_slots)
        self._steps = make_steps(request, settings, self._store, sizes)
        self._samples = request.empty_samples()
        self._num_rounds = 0
        self._evaluations = 0
        self._rows = 0
        self._reader = PointReader(request, self._store) if settings.tells_points else None

    @property
    def has_ended(self) -> bool:
        """Whether every sample has ended."""
        return self._steps.num_rows == 0

    @property
    def num_model_rows(self) -> int:
        """Rows of the next round's model call, 0 after the end; guidance takes two per row."""
        return self._steps.num_rows * self.request.denoiser.evaluations_per_row

    def begin(self) -> ModelInputs:
        """Open the next round's windows; what the model is to be called with."""
        x, t, row_sample = self._steps.begin()
        self._rows = row_sample.shape[0]
        return self.request.denoiser.inputs(x, t, row_sample)

    def correct(self, outputs: torch.Tensor) -> None:
        """One Picard iteration of every window, from the model's outputs; nothing waits."""
        denoiser = self.request.denoiser
        self._steps.correct(*denoiser.halves(outputs), denoiser.guidance_scale)

    def advance(self) -> list[Finished]:
        """Move the windows past what was accepted; the samples that ended, with results kept."""
        finished = self._steps.advance()
        self._num_rounds += 1
        self._evaluations += self._rows
        self._keep(finished)
        return finished

    @property
    def num_points_final(self) -> int:
        """Points of all trajectories that no later round changes; those of ended samples count."""
        return self._num_nodes * len(self.ends) + self._steps.num_left_behind

    def cancel(self) -> list[Finished]:
        """End every sample that has not ended; the best estimates so far are kept."""
        finished = self._steps.cancel()
        self._keep(finished)
        return finished

    def told(self) -> RoundProgress:
        """What a callback is told now."""
        if self._reader is not None:
            self._reader.move([end.sample for end in self.ends], self._num_nodes)
            if (plan := self._steps.plan()) is not None:
                self._reader.move(plan.sample, plan.start)
        return RoundProgress(
            self._num_rounds,
            self._evaluations,
            len(self.ends),
            self.request.num_samples,
            None if self._reader is None else self._reader.points(),
        )

    def estimates(self) -> torch.Tensor:
        """The latest estimate of every sample [B, *shape], its x0; NaN where there is none."""
        estimates = self._samples.clone()
        plan = self._steps.plan()
        if plan is not None:
            for slot, sample, known in zip(plan.slot, plan.sample, plan.known, strict=True):
                if known > 0:
                    estimates[sample] = self._store.data_estimate(int(slot), int(known) - 1)
        return estimates.view(-1, *self.request.shape)

    def outcome(self) -> Outcome:
        """What came of it, once every sample has ended."""
        if self._reader is not None:
            self._reader.close()
        is_kept = self._settings.keep_trajectory
        return Outcome(
            self._samples,
            sorted(self.ends, key=lambda end: end.sample),
            self._steps.history(),
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


def run_round(members: Sequence[Rounds]) -> dict[Rounds, Exception]:
    """One round of every member, in as few model calls as their forms allow.

    Returns:
        The members whose round failed, and why: those have not moved. Where a shared call fails,
        each member's rows are tried alone, so that the others go on.
    """
    errors: dict[Rounds, Exception] = {}
    alike: dict[Hashable, list[tuple[Rounds, ModelInputs]]] = {}
    for rounds in members:
        denoiser = rounds.request.denoiser
        try:
            part = rounds.begin()
        except Exception as error:
            errors[rounds] = error
        else:
            alike.setdefault((denoiser.calls, denoiser.row_form), []).append((rounds, part))
    outputs: dict[Rounds, torch.Tensor] = {}
    for parts in alike.values():
        _evaluate(parts, outputs, errors)
    # all corrections are enqueued before the first one is waited for
    for step in (lambda rounds: rounds.correct(outputs[rounds]), Rounds.advance):
        for rounds in [member for member in outputs if member not in errors]:
            try:
                step(rounds)
            except Exception as error:
                errors[rounds] = error
    return errors


def _evaluate(
    parts: Sequence[tuple[Rounds, ModelInputs]],
    outputs: dict[Rounds, torch.Tensor],
    errors: dict[Rounds, Exception],
) -> None:
    calls = parts[0][0].request.denoiser.calls
    try:
        joined = calls(ModelInputs.joined([inputs for _, inputs in parts]))
    except Exception as error:
        if len(parts) == 1:
            errors[parts[0][0]] = error
        else:
            # whose fault it is shows when each goes alone
            for part in parts:
                _evaluate([part], outputs, errors)
    else:
        sizes = [len(inputs) for _, inputs in parts]
        pieces = (joined,) if len(parts) == 1 else torch.split(joined, sizes)
        outputs.update((rounds, piece) for (rounds, _), piece in zip(parts, pieces, strict=True))


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
        while not rounds.has_ended:
            for error in run_round([rounds]).values():
                raise error
            bar.update(rounds.num_points_final - bar.n)
            if callback is not None and callback(rounds.told()) is True:
                rounds.cancel()
    return rounds.outcome()
