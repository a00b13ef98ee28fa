"""A request in an engine, and what is counted of many."""

from __future__ import annotations

from dataclasses import dataclass, field

from ctd_engine._handle import Handle
from ctd_engine._request import Request
from ctd_engine._rounds import Rounds
from ctd_engine._run_settings import Outcome, RoundSettings
from ctd_engine.scheduling import Finished
from ctd_engine.scheduling.plan import CANCELLED

__all__ = ["EngineFullError", "EngineStats", "Job", "News"]


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
class Job:
    """A request in an engine: `deadline` and `submitted` in seconds of the engine's clock, `order`
    of submission, and `asked`, what other ranks make the same job of."""

    request: Request
    settings: RoundSettings
    handle: Handle
    priority: float
    deadline: float | None
    order: int
    submitted: float
    asked: bytes = b""
    started: float | None = None
    virtual_time: float = 0.0
    _rounds: Rounds | None = field(default=None, init=False)

    @property
    def rounds(self) -> Rounds:
        """Its rounds."""
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


@dataclass(frozen=True)
class News:
    """What a step begins with: the time, who came, whose early end was asked for (by order), and
    whether it is the last step. All that may differ from rank to rank, and must not."""

    now: float
    arrivals: list[Job]
    cancelled: set[int]
    is_last: bool
