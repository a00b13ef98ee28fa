"""What `window_size="auto"` knows of a sampler: plans of requests, and how far windows got."""

from __future__ import annotations

import logging

from ctd_engine._auto_window import Run, make_plan
from ctd_engine._over_ranks import OverRanks, Way
from ctd_engine._reach import expected_reach, observed_reach
from ctd_engine._request import Request
from ctd_engine.denoiser import Model
from ctd_engine.result import RoundRecord
from ctd_engine.window_plan import WindowPlan

__all__ = ["Planner"]

logger = logging.getLogger("ctd_engine")


class Planner:
    """Plans the requests of one sampler, and learns from its runs.

    Args:
        model: the sampler's.
        alone: how a request is run in this process.
        shared: the group of ranks, if there is one.
    """

    def __init__(self, model: Model, alone: Way, shared: OverRanks | None) -> None:
        self._model = model
        self._alone = alone
        self._shared = shared
        settings = alone.settings
        self._reach = expected_reach(settings.table.num_nodes, settings.tolerance)
        self._has_told = False

    def plan(self, request: Request, run: Run, is_heard: bool) -> tuple[Way, WindowPlan]:
        """How the request is run fastest; says once where that is sequentially.

        `run` is called to measure the rounds, the first time.
        """
        way = self._alone
        if self._shared is None:
            chosen = make_plan(
                self._model, request, way.settings, self._reach, way.is_resident, run
            )
        else:
            way, chosen = self._shared.plan(self._model, request, way, self._reach, run, is_heard)
        is_first = self._shared is None or self._shared.ranks.rank == 0
        if chosen.is_sequential and is_first and not self._has_told:
            self._has_told = True
            rival = min(chosen.options[1:], key=lambda o: o.wall_time_s, default=chosen.best)
            logger.warning(
                'window_size="auto": sequential sampling is predicted to be fastest here, %.3g s '
                "against %.3g s with a window of %d; pass window_size to insist on a window",
                chosen.best.wall_time_s,
                rival.wall_time_s,
                rival.window_size,
            )
        return way, chosen

    def learn(self, history: list[RoundRecord]) -> None:
        """Take the windows of a planned run into account."""
        self._reach = observed_reach(history) or self._reach
