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
import itertools
import threading
import time as _time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ctd_engine._handle import Handle, RequestProgress, RequestState
from ctd_engine._request import Request
from ctd_engine._rounds import Rounds, run_round
from ctd_engine._run_settings import Outcome, RoundSettings, make_result
from ctd_engine.result import SampleResult, StopReason
from ctd_engine.scheduling import Finished
from ctd_engine.scheduling.plan import CANCELLED

__all__ = ["EngineCore", "EngineFullError", "EngineStats"]


class EngineFullError(RuntimeError):
    """The queue of an `Engine` holds `max_queued` requests already."""


@dataclass(frozen=True)
class EngineStats:
    """Counts since the engine began: rounds, model rows in them, and requests by state."""

    rounds: int = 0
    evaluations: int = 0
    num_queued: int = 0
    num_running: int = 0
    num_finished: int = 0
    num_cancelled: int = 0
    num_failed: int = 0


@dataclass(eq=False)
class _Job:
    request: Request
    settings: RoundSettings
    handle: Handle
    priority: float
    deadline: float | None
    order: int
    submitted: float
    started: float | None = None
    virtual_time: float = 0.0
    _rounds: Rounds | None = field(default=None, init=False)

    @property
    def rounds(self) -> Rounds:
        # its memory is taken when its first round comes
        if self._rounds is None:
            self._rounds = Rounds(self.request, self.settings)
        return self._rounds

    @property
    def work(self) -> int:
        """Model rows that its samples would take one step after the other."""
        nodes = self.settings.table.num_nodes
        return self.request.num_samples * nodes * self.request.denoiser.evaluations_per_row

    def outcome(self) -> Outcome:
        """Its end; what has not ended is cancelled."""
        if self._rounds is not None:
            self._rounds.cancel()
            return self._rounds.outcome()
        ends = [Finished(b, -1, CANCELLED, 0, 0, 0, 0) for b in range(self.request.num_samples)]
        return Outcome(self.request.empty_samples(), ends, [], 0, 0)


class EngineCore:
    """The state of an engine: requests that wait and requests that run.

    `submit` and the stop of a request may come from any thread; `step` and `abort` belong to one.

    Args:
        max_rows: model rows per round at most.
        max_active: requests that run at once.
        max_queued: requests that wait at most.
        clock: seconds that deadlines are measured in.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        max_active: int,
        max_queued: int,
        clock: Callable[[], float] = _time.monotonic,
    ) -> None:
        self._max_rows = max_rows
        self._max_active = max_active
        self._max_queued = max_queued
        self._clock = clock
        self._lock = threading.Lock()
        # (virtual end, order, job); guarded by the lock, the rest belongs to the stepping thread
        self._queue: list[tuple[float, int, _Job]] = []
        self._active: list[_Job] = []
        self._orders = itertools.count()
        self._virtual_now = 0.0
        self._stats = EngineStats()

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._queue or self._active)

    @property
    def stats(self) -> EngineStats:
        """Counts until the last round."""
        return replace(self._stats, num_queued=len(self._queue), num_running=len(self._active))

    def submit(
        self,
        request: Request,
        settings: RoundSettings,
        *,
        priority: float = 1.0,
        deadline_s: float | None = None,
    ) -> Handle:
        """Put a request into the queue.

        Raises:
            EngineFullError: the queue is full.
        """
        now = self._clock()
        job = _Job(
            request,
            settings,
            Handle(request.num_samples * settings.table.num_nodes),
            priority,
            None if deadline_s is None else now + deadline_s,
            next(self._orders),
            now,
        )
        with self._lock:
            if len(self._queue) >= self._max_queued:
                raise EngineFullError(
                    f"{len(self._queue)} requests wait already, the most that this engine allows "
                    "(max_queued); submit again after some have ended"
                )
            virtual_end = self._virtual_now + job.work / priority
            heapq.heappush(self._queue, (virtual_end, job.order, job))
        return job.handle

    def cancel_all(self) -> None:
        """Ask every request to end early."""
        with self._lock:
            everyone = [job for _, _, job in self._queue] + self._active
        for job in everyone:
            job.handle.cancel()

    def step(self) -> int:
        """One round of as many requests as the budget holds; its model rows, 0 without work."""
        self._end_early()
        self._admit()
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
        if self._active:
            least = min(job.virtual_time for job in self._active)
            self._virtual_now = max(self._virtual_now, least)
        total = sum(rows.values())
        if total > 0:
            self._count(rounds=1, evaluations=total)
        return total

    def abort(self, error: BaseException) -> None:
        """End every request with an error: no further round will come."""
        for job in (*self._take_waiting(lambda job: True), *self._active):
            failure = RuntimeError("the engine stopped because of an error; submit to a new one")
            failure.__cause__ = error
            self._fail(job, failure)

    def _take_waiting(self, is_wanted: Callable[[_Job], bool]) -> list[_Job]:
        with self._lock:
            taken = [job for _, _, job in self._queue if is_wanted(job)]
            self._queue = [entry for entry in self._queue if entry[2] not in taken]
            heapq.heapify(self._queue)
        return taken

    def _end_early(self) -> None:
        now = self._clock()

        def is_over(job: _Job) -> bool:
            return job.handle.is_cancelled or (job.deadline is not None and now >= job.deadline)

        for job in (*self._take_waiting(is_over), *filter(is_over, self._active)):
            if job.handle.is_cancelled:
                self._finish(job, RequestState.CANCELLED)
            else:
                self._finish(job, RequestState.FINISHED, StopReason.DEADLINE)

    def _admit(self) -> None:
        while len(self._active) < self._max_active:
            with self._lock:
                if not self._queue:
                    return
                _, _, job = heapq.heappop(self._queue)
                self._active.append(job)
            job.started = self._clock()
            job.virtual_time = self._virtual_now
            try:
                self._show(job)
            except Exception as error:
                self._fail(job, error)

    def _pick(self) -> list[_Job]:
        picked, left = [], self._max_rows
        for job in sorted(self._active, key=lambda job: (job.virtual_time, job.order)):
            rows = job.rounds.num_model_rows
            if rows <= left:
                picked.append(job)
                left -= rows
        return picked

    def _show(self, job: _Job) -> None:
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
            rounds.estimates() if handle.is_watched and told.round > 0 else None,
        )

    def _finish(
        self, job: _Job, state: RequestState, reason_if_cut: StopReason = StopReason.CANCELLED
    ) -> None:
        self._leave(job, state)
        try:
            result = self._result(job, reason_if_cut)
        except Exception as error:
            job.handle.fail(error)
        else:
            job.handle.finish(result)

    def _result(self, job: _Job, reason_if_cut: StopReason) -> SampleResult:
        now = self._clock()
        result = make_result(job.request, job.outcome(), now - job.submitted)
        queued = (now if job.started is None else job.started) - job.submitted
        reasons = [
            reason_if_cut if reason is StopReason.CANCELLED else reason
            for reason in result.stop_reasons
        ]
        return replace(result, stop_reasons=reasons, stats=replace(result.stats, queued_s=queued))

    def _fail(self, job: _Job, error: Exception) -> None:
        self._leave(job, RequestState.FAILED)
        job.handle.fail(error)

    def _leave(self, job: _Job, state: RequestState) -> None:
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
