"""An engine on many ranks: rank 0 tells the others what came, and all decide alike."""

from __future__ import annotations

from collections.abc import Callable

from ctd_engine._engine_jobs import Job, News
from ctd_engine._handle import Handle
from ctd_engine._ranks import Ranks
from ctd_engine._request import Request
from ctd_engine._run_settings import RoundSettings

__all__ = ["SharedNews"]


class SharedNews:
    """Rank 0's news for everyone, as the `agree` of an `EngineCore`.

    Requests travel pickled, once, when they come; a process group is one program, and its ranks
    trust each other. All else follows on every rank from the same numbers.

    Args:
        ranks: of the engine, and of nobody else while it lives.
        make: what a rank samples for what rank 0 was asked.
    """

    def __init__(
        self, ranks: Ranks, make: Callable[[bytes], tuple[Request, RoundSettings]]
    ) -> None:
        self._ranks = ranks
        self._make = make

    def __call__(self, news: News) -> News:
        is_first = self._ranks.rank == 0
        told = [
            (job.asked, job.priority, job.deadline, job.order, job.submitted)
            for job in news.arrivals
        ]
        now, arrivals, cancelled, is_last = self._ranks.share(
            (news.now, told, news.cancelled, news.is_last)
        )
        if not arrivals:
            return News(now, [], cancelled, is_last)
        # a rank that cannot make one stops all, before they come apart
        jobs = self._ranks.together(
            lambda: news.arrivals if is_first else [self._job(*one) for one in arrivals]
        )
        return News(now, jobs, cancelled, is_last)

    def _job(
        self, asked: bytes, priority: float, deadline: float | None, order: int, submitted: float
    ) -> Job:
        request, settings = self._make(asked)
        # nobody holds it here
        handle = Handle(request.num_samples * settings.table.num_nodes)
        return Job(request, settings, handle, priority, deadline, order, submitted, asked)
