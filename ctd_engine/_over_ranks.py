"""A sampler's share of a run on many ranks: agree, choose what is shared, run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from ctd_engine import _checks
from ctd_engine._alike import Given, described, same_request
from ctd_engine._auto_window import Run, plan_with, round_times
from ctd_engine._graphs import GraphSwitch
from ctd_engine._ranks import Ranks
from ctd_engine._request import Request
from ctd_engine._rounds import run_rounds
from ctd_engine._run_settings import Outcome, RoundSettings
from ctd_engine._split_plan import LinkTimes, few_are_idle, measure_link, over_ranks
from ctd_engine._split_samples import run_samples
from ctd_engine.denoiser import Model
from ctd_engine.result import Callback, RoundProgress
from ctd_engine.window_plan import WindowPlan

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["OverRanks", "Way"]

SPLITS = ("auto", "rows", "samples")


@dataclass(frozen=True)
class Way:
    """How a request is run: rounds beside the model or on the host, each rank apart or not."""

    settings: RoundSettings
    is_resident: bool
    is_apart: bool


class OverRanks:
    """What the ranks of one process group do alike for one sampler on each of them.

    Args:
        process_group, split: as of `ParallelSampler`.
        settings: the sampler's; `max_rows` counts the rows of all ranks.
        window_size: the sampler's, which may be "auto".
    """

    def __init__(
        self,
        process_group: dist.ProcessGroup | DeviceMesh,
        split: str,
        settings: RoundSettings,
        window_size: int | str,
    ) -> None:
        self.split = _checks.require_choice("split", split, SPLITS)
        if settings.lockstep and split == "samples":
            raise ValueError(
                'split="samples" and lockstep exclude each other: samples of different ranks share '
                "no window"
            )
        if settings.scheduler_backend == "cuda" and split != "samples":
            raise ValueError(
                'scheduler_backend "cuda" cannot schedule rounds whose rows are shared: leave it '
                'out, or pass split="samples"'
            )
        self.ranks = Ranks(process_group, settings.device)
        # other dimensions of a mesh hold parts of the model, and no word of this group's decisions
        self._has_other_axis = (
            not isinstance(process_group, dist.ProcessGroup)
            and self.ranks.size < dist.get_world_size()
        )
        if self._has_other_axis and window_size == "auto":
            raise ValueError(
                'window_size="auto" cannot be told to the ranks along the other dimensions of the '
                "DeviceMesh, which hold parts of the model: give a number; or pass "
                "mesh[...].get_group() if they have models of their own"
            )
        self._settings = settings
        self._window_size = window_size
        self._link: LinkTimes | None = None

    def request(
        self, make: Callable[..., Request], given: Given, keeps: bool, has_callback: bool
    ) -> tuple[Request, bool]:
        """The same request on all ranks, and whether any of them has a callback."""
        if self._has_other_axis and given[1] is None and given[2] is None:
            raise ValueError(
                "seed must be given with one dimension of a DeviceMesh: the ranks along the other "
                "dimensions, which hold parts of the model, would draw another one"
            )
        told = {
            **described(self._settings),
            "window_size": repr(self._window_size),
            "split": repr(self.split),
            "keep_trajectory": repr(bool(keeps)),
        }
        request = same_request(self.ranks, make, given, told)
        any_callback = any(self.ranks.exchange(has_callback))
        if any_callback and self.split == "samples":
            raise ValueError(
                'split="samples" takes no callback: no rank sees the rounds of all samples; use '
                'split="rows"'
            )
        return request, any_callback

    def way(self, request: Request, alone: Way, has_callback: bool) -> Way:
        """How to run with a fixed window, where nothing was measured."""
        together = self._must_be_together(has_callback)
        is_apart = self.split == "samples" or few_are_idle(request.num_samples, self.ranks.size)
        return self._together if together or not is_apart else self._apart(alone)

    def _must_be_together(self, has_callback: bool) -> bool:
        return self.split == "rows" or has_callback or self._settings.lockstep

    def _apart(self, alone: Way) -> Way:
        # a rank has samples of its own, and its share of max_rows
        each = -(-alone.settings.max_rows // self.ranks.size)
        return replace(alone, settings=replace(alone.settings, max_rows=each))

    @property
    def _together(self) -> Way:
        # rounds that wait for the host cannot be recorded
        settings = replace(self._settings, graphs=GraphSwitch(False))
        return Way(settings, is_resident=False, is_apart=False)

    def plan(
        self,
        model: Model,
        request: Request,
        alone: Way,
        reach: float,
        run: Run,
        has_callback: bool,
    ) -> tuple[Way, WindowPlan]:
        """The fastest way and windows; the same on all ranks.

        Times are those of rank 0, since all must plan with the same. Where ranks have samples of
        their own the plan is for one rank's part of them.
        """
        size, denoiser = self.ranks.size, request.denoiser
        apart, together = self._apart(alone), self._together
        found: list[tuple[Way, WindowPlan]] = []
        if not self._must_be_together(has_callback):
            times = self._times(model, request, apart.settings, run)
            each = -(-request.num_samples // size)
            planned = plan_with(times, each, apart.settings, reach, apart.is_resident)
            found.append((apart, planned))
        if self.split != "samples":
            measured = replace(together.settings, max_rows=apart.settings.max_rows)
            times = self._times(model, request, measured, _run_on_host)
            if self._link is None:
                self._link = measure_link(self.ranks)
            row_bytes = request.num_elements * denoiser.outputs * measured.model_dtype.itemsize
            times = over_ranks(times, self._link, size, denoiser.evaluations_per_row, row_bytes)
            planned = plan_with(times, request.num_samples, together.settings, reach, False)
            found.append((together, planned))
        return min(found, key=lambda option: option[1].best.wall_time_s)

    def _times(self, model: Model, request: Request, settings: RoundSettings, run: Run) -> Any:
        times = error = None
        try:
            times = round_times(model, request, settings, run)
        except Exception as caught:
            error = caught
        return self.ranks.settle(error, times)[0]

    def run_together(
        self,
        request: Request,
        settings: RoundSettings,
        progress: bool,
        callback: Callback | None,
        has_callback: bool,
    ) -> Outcome:
        """All ranks do the same rounds and share the rows of each."""
        shared = replace(request, denoiser=request.denoiser.over(self.ranks))
        heard = self._heard(callback) if has_callback else None
        return run_rounds(shared, settings, progress=progress, callback=heard)

    def run_apart(
        self, request: Request, settings: RoundSettings, run: Callable[[Request], Outcome]
    ) -> Outcome:
        """Each rank runs its samples; all get all of them."""
        return run_samples(request, settings, self.ranks, run)

    def _heard(self, callback: Callback | None) -> Callback:
        """Cancels on all ranks in the same round, if a callback on any of them asks for it."""

        def heard(told: RoundProgress) -> bool:
            asks, error = False, None
            try:
                asks = callback is not None and callback(told) is True
            except Exception as caught:
                error = caught
            return any(self.ranks.settle(error, asks))

        return heard


def _run_on_host(request: Request, settings: RoundSettings, callback: Callback) -> Outcome:
    return run_rounds(request, settings, callback=callback)
