"""The C++ window scheduler behind the interface of its Python twin."""

from __future__ import annotations

from types import ModuleType

from ctd_engine.scheduling.plan import Finished, IntArray, RoundPlan, require_sizes
from ctd_engine.scheduling.sizes import Sizes

__all__ = ["CppWindowScheduler"]


class CppWindowScheduler:
    """`PyWindowScheduler`, decision for decision, in C++; sizes come from `checked_sizes`."""

    def __init__(self, extension: ModuleType, sizes: Sizes) -> None:
        self._scheduler = extension.WindowScheduler(**sizes)
        self._plan: RoundPlan | None = None

    @property
    def round(self) -> int:
        """Rounds that were stepped."""
        return int(self._scheduler.round)

    @property
    def num_active(self) -> int:
        """Samples that hold a slot."""
        return int(self._scheduler.num_active)

    @property
    def num_waiting(self) -> int:
        """Samples that have not begun."""
        return int(self._scheduler.num_waiting)

    @property
    def num_finished(self) -> int:
        """Samples that ended, for whatever reason."""
        return int(self._scheduler.num_finished)

    def plan(self) -> RoundPlan | None:
        """The round to run now, None when all samples are finished; the same until `step`."""
        if self._plan is None:
            columns = self._scheduler.plan()
            self._plan = None if columns is None else RoundPlan(*columns)
        return self._plan

    def step(
        self, accepted: IntArray, finite: IntArray, near: IntArray | None = None
    ) -> list[Finished]:
        """Move every window after a round; see `PyWindowScheduler.step`."""
        if self._plan is None:
            raise ValueError("step() needs a planned round: call plan() first")
        require_sizes(accepted, finite, near, len(self._plan.slot))
        finished = self._scheduler.step(accepted, finite, accepted if near is None else near)
        self._plan = None
        return [Finished(*row) for row in finished]

    def cancel(self) -> list[Finished]:
        """End every unfinished sample as CANCELLED."""
        self._plan = None
        return [Finished(*row) for row in self._scheduler.cancel()]
