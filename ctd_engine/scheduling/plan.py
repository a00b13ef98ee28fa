"""What the window scheduler is told and what it decides, in either implementation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "CANCELLED",
    "CONVERGED",
    "DIVERGED",
    "MAX_ROUNDS",
    "Finished",
    "RoundPlan",
    "Scheduler",
    "require_sizes",
]

IntArray = npt.NDArray[np.int64]

CONVERGED, MAX_ROUNDS, DIVERGED, CANCELLED = range(4)


@dataclass(frozen=True)
class RoundPlan:
    """One round: which nodes of which samples the model is evaluated on.

    Entry a, in order of slots, holds `sample[a]` in `slot[a]`; its nodes `start[a] .. start[a] +
    length[a] - 1` are evaluated, and nodes `start + 1 .. start + length` get new values. The model
    is asked at the first `dense[a]` of them and at some of the others, see `PyWindowScheduler`.
    Nodes after `known[a]` hold nothing yet: they are guessed before the round. Row r of the
    model's batch is node `row_node[r]` = start + `row_offset[r]` of entry `row_entry[r]`.

    All arrays are int64: the first six [A], the others [R].
    """

    slot: IntArray
    sample: IntArray
    start: IntArray
    length: IntArray
    known: IntArray
    dense: IntArray
    row_slot: IntArray
    row_sample: IntArray
    row_node: IntArray
    row_entry: IntArray
    row_offset: IntArray


class Finished(NamedTuple):
    """A sample that ended. `slot` is -1 if it never had one; `reason` is one of four codes.

    `start` is the node that its window has reached, `known` its last node with a finite value.
    """

    sample: int
    slot: int
    reason: int
    rounds: int
    evaluations: int
    start: int
    known: int


class Scheduler(Protocol):
    """What both implementations do; `PyWindowScheduler` documents it."""

    @property
    def round(self) -> int: ...

    @property
    def num_active(self) -> int: ...

    @property
    def num_waiting(self) -> int: ...

    @property
    def num_finished(self) -> int: ...

    def plan(self) -> RoundPlan | None: ...

    def step(
        self, accepted: IntArray, finite: IntArray, near: IntArray | None = None
    ) -> list[Finished]: ...

    def cancel(self) -> list[Finished]: ...


def require_sizes(
    accepted: IntArray, finite: IntArray, near: IntArray | None, num_active: int
) -> None:
    """Raise ValueError unless all that are given hold one integer per active sample."""
    for name, values in (("accepted", accepted), ("finite", finite), ("near", near)):
        if values is None:
            continue
        if np.shape(values) != (num_active,):
            raise ValueError(
                f"{name} must have one entry per active sample, shape ({num_active},), "
                f"got {np.shape(values)}"
            )
        dtype = np.asarray(values).dtype
        if dtype.kind != "i":
            raise ValueError(f"{name} must hold signed integers, got {dtype}")
