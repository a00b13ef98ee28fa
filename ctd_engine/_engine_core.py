"""Which requests take part in a round of an `Engine`, and what becomes of them. No thread.

A round of a request is whole or not at all: the budget of model rows decides *when* its rounds
run, never what they do, so that its samples do not depend on what runs beside it.

Fair shares come from virtual time (start-time fair queueing; Goyal, Vin and Cheng 1996): a request
has used rows / priority of it, the one that has used least goes first, and whoever still fits
comes along. Those that wait are admitted in the order in which they would end if every request had
its share from the start: short ones do not wait for long ones that came before, and none waits for
ever, because the clock that newcomers start from goes on.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time as _time
from collections.abc import Callable
from dataclasses import replace

import torch

from ctd_engine._engine_jobs import EngineFullError, EngineStats, Job, News
from ctd_engine._handle import Handle, RequestProgress, RequestState, without_frames
from ctd_engine._request import Request
from ctd_engine._rounds import Rounds, run_round
from ctd_engine._run_settings import RoundSettings, make_result
from ctd_engine.result import SampleResult, StopReason

__all__ = ["EngineCore"]

logger = logging.getLogger("ctd_engine")


class EngineCore:
    """The state of an engine: requests that wait and requests that run.

    `submit`, `cancel_all` and the cancelling of a request may come from any thread; `step` and
    `abort` belong to one.

    Args:
        max_rows: model rows per round at most.
        max_active: requests that run at once.
        max_queued: requests that wait at most.
        clock: seconds that deadlines are measured in.
        agree: makes the news of all ranks one; every step begins with it.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        max_active: int,
        max_queued: int,
        clock: Callable[[], float] = _time.monotonic,
        agree: Callable[[News], News] = lambda news: news,
    ) -> None:
        self._max_rows = max_rows
        self._max_active = max_active
        self._max_queued = max_queued
        self._clock = clock
        self._agree = agree
        self._lock = threading.Lock()
        # the first three are guarded by the lock; all else belongs to the stepping thread
        self._arrivals: list[Job] = []
        self._num_submitted = 0
        # requests whose order is less have to end early
        self._cancelled_before = 0
        # (virtual end, order, job)
        self._queue: list[tuple[float, int, Job]] = []
        self._active: list[Job] = []
        self._now = clock()
        self._virtual_now = 0.0
        self._stats = EngineStats()
        self.is_over = False

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._arrivals or self._queue or self._active)

    @property
    def stats(self) -> EngineStats:
        """Counts until the last round."""
        return replace(self._stats, num_queued=self._num_queued, num_running=len(self._active))

    @property
    def _num_queued(self) -> int:
        return len(self._arrivals) + len(self._queue)

    def submit(
        self,
        request: Request,
        settings: RoundSettings,
        *,
        priority: float = 1.0,
        deadline_s: float | None = None,
        asked: bytes = b"",
    ) -> Handle:
        """Put a request into the queue.

        Raises:
            EngineFullError: the queue is full.
        """
        now = self._clock()
        deadline = None if deadline_s is None else now + deadline_s
        handle = Handle(request.num_samples * settings.table.num_nodes)
        with self._lock:
            if self._num_queued >= self._max_queued:
                raise EngineFullError(
                    f"{self._num_queued} requests wait already, the most that this engine allows "
                    "(max_queued); submit again after some have ended"
                )
            order = self._num_submitted
            self._num_submitted += 1
            self._arrivals.append(
                Job(request, settings, handle, priority, deadline, order, now, asked)
            )
        return handle

    def cancel_all(self) -> None:
        """Ask every request that was submitted to end early, with the next step."""
        with self._lock:
            self._cancelled_before = self._num_submitted

    def step(self, is_last: bool = False) -> int:
        """One round of as many requests as the budget holds; its model rows, 0 without work."""
        own = self._news(is_last)
        news = self._agree(own)
        self._now, self.is_over = news.now, news.is_last
        with self._lock:
            # only now: where the ranks cannot agree, `abort` has to find them
            del self._arrivals[: len(own.arrivals)]
            for job in news.arrivals:
                virtual_end = self._virtual_now + job.work / job.priority
                heapq.heappush(self._queue, (virtual_end, job.order, job))
        self._end_early(news.cancelled)
        self._admit()
        running = list(self._active)
        picked = self._pick()
        rows = {job: job.rounds.num_model_rows for job in picked}
        errors = run_round([job.rounds for job in picked])
        for job, num_rows in rows.items():
            job.virtual_time += num_rows / job.priority
            if job.rounds in errors:
                self._fail(job, errors[job.rounds])
                continue
            self._show(job)
            if job.rounds.has_ended:
                self._finish(job, RequestState.FINISHED)
        if running:
            # with those that have ended: the clock goes on where each request takes one round
            least = min(job.virtual_time for job in running)
            self._virtual_now = max(self._virtual_now, least)
        total = sum(rows.values())
        if total > 0:
            self._count(rounds=1, evaluations=total)
        return total

    def _everyone(self) -> list[Job]:
        with self._lock:
            return [*self._arrivals, *(job for _, _, job in self._queue), *self._active]

    def _news(self, is_last: bool) -> News:
        cancelled = {
            job.order
            for job in self._everyone()
            if job.handle.is_cancelled or job.order < self._cancelled_before
        }
        with self._lock:
            arrivals = list(self._arrivals)
        return News(self._clock(), arrivals, cancelled, is_last)

    def abort(self, error: BaseException) -> None:
        """End every request with an error: no further round will come."""
        self.is_over = True
        error = without_frames(error)
        everyone = self._everyone()
        self._arrivals, self._queue = [], []
        for job in everyone:
            failure = RuntimeError("the engine stopped because of an error; submit to a new one")
            failure.__cause__ = error
            self._fail(job, failure)

    def _end_early(self, cancelled: set[int]) -> None:
        def is_over(job: Job) -> bool:
            is_late = job.deadline is not None and self._now >= job.deadline
            return is_late or job.order in cancelled

        waiting = [job for _, _, job in self._queue if is_over(job)]
        self._queue = [entry for entry in self._queue if entry[2] not in waiting]
        heapq.heapify(self._queue)
        for job in (*waiting, *filter(is_over, self._active)):
            if job.order in cancelled:
                self._finish(job, RequestState.CANCELLED)
            else:
                self._finish(job, RequestState.FINISHED, StopReason.DEADLINE)

    def _admit(self) -> None:
        while self._queue and len(self._active) < self._max_active:
            _, _, job = heapq.heappop(self._queue)
            self._active.append(job)
            job.started = self._now
            job.virtual_time = self._virtual_now
            try:
                self._show(job)
            except Exception as error:
                self._fail(job, error)

    def _pick(self) -> list[Job]:
        picked, left = [], self._max_rows
        for job in sorted(self._active, key=lambda job: (job.virtual_time, job.order)):
            rows = job.rounds.num_model_rows
            if rows <= left:
                picked.append(job)
                left -= rows
        return picked

    def _show(self, job: Job) -> None:
        rounds = job.rounds
        told = rounds.told()
        handle = job.handle
        per_row = job.request.denoiser.evaluations_per_row
        handle.show(
            RequestProgress(
                RequestState.RUNNING,
                told.round,
                told.evaluations * per_row,
                rounds.num_points_final,
                handle.progress.num_points,
            ),
            self._preview(rounds) if handle.is_watched and told.round > 0 else None,
        )

    @staticmethod
    def _preview(rounds: Rounds) -> torch.Tensor | None:
        try:
            return rounds.estimates()
        except Exception:
            # such as for want of memory: the samples are not worse for it
            logger.warning("a preview was left out", exc_info=True)
            return None

    def _finish(
        self, job: Job, state: RequestState, reason_if_cut: StopReason = StopReason.CANCELLED
    ) -> None:
        self._leave(job, state)
        try:
            result = self._result(job, reason_if_cut)
        except Exception as error:
            job.handle.fail(error)
        else:
            job.handle.finish(result)

    def _result(self, job: Job, reason_if_cut: StopReason) -> SampleResult:
        now = self._clock()
        result = make_result(job.request, job.outcome(), now - job.submitted)
        queued = (now if job.started is None else job.started) - job.submitted
        reasons = [
            reason_if_cut if reason is StopReason.CANCELLED else reason
            for reason in result.stop_reasons
        ]
        return replace(result, stop_reasons=reasons, stats=replace(result.stats, queued_s=queued))

    def _fail(self, job: Job, error: Exception) -> None:
        self._leave(job, RequestState.FAILED)
        job.handle.fail(error)

    def _leave(self, job: Job, state: RequestState) -> None:
        if job in self._active:
            self._active.remove(job)
        name = {
            RequestState.FINISHED: "num_finished",
            RequestState.CANCELLED: "num_cancelled",
            RequestState.FAILED: "num_failed",
        }[state]
        self._count(**{name: 1})
        job.handle.show(replace(job.handle.progress, state=state))

    def _count(self, **more: int) -> None:
        now = self._stats
        self._stats = replace(now, **{name: getattr(now, name) + n for name, n in more.items()})
