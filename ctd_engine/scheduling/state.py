"""The layout of the scheduler's state, that of `csrc/window_state.h`, and how a copy is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from ctd_engine.scheduling.plan import Finished, IntArray
from ctd_engine.scheduling.sizes import Sizes

__all__ = ["HEADER", "ROW_COLUMNS", "SLOT_COLUMNS", "Snapshot", "empty_state", "read_snapshot"]

HEADER = (
    "next_sample",
    "num_finished",
    "round",
    "num_rows",
    "num_active",
    "num_samples",
    "num_nodes",
    "window_size",
    "first_length",
    "max_rounds",
    "window_ratio",
    "first_window",
    "far_stride",
    "max_rows",
    "num_slots",
    "lockstep",
)
SLOT_COLUMNS = (
    "sample",
    "start",
    "length",
    "known",
    "rounds",
    "evaluations",
    "reach",
    "near",
    "first_row",
    "ended_sample",
    "ended_reason",
    "ended_known",
    "admitted_sample",
)
END_COLUMNS = ("slot", "reason", "rounds", "evaluations", "start", "known")
ROW_COLUMNS = ("row_slot", "row_sample", "row_node", "row_entry", "row_offset")


def empty_state(sizes: Sizes) -> IntArray:
    """A state that holds the limits and nothing else, int64 [header, S columns, B columns]."""
    slots = len(SLOT_COLUMNS) * sizes["num_slots"]
    ends = len(END_COLUMNS) * sizes["num_samples"]
    state = np.zeros(len(HEADER) + slots + ends, dtype=np.int64)
    limits = cast("dict[str, int]", sizes)
    state[: len(HEADER)] = [limits.get(name, 0) for name in HEADER]
    return state


@dataclass(frozen=True)
class Snapshot:
    """A scheduler's state at one moment, on the host.

    `sample` .. `near` are int64 [S], a free slot's sample is -1. `ended` holds the samples that
    the last step ended, in order of slots.
    """

    round: int
    num_rows: int
    num_active: int
    num_waiting: int
    num_finished: int
    sample: IntArray
    start: IntArray
    length: IntArray
    known: IntArray
    rounds: IntArray
    evaluations: IntArray
    reach: IntArray
    near: IntArray
    ended: list[Finished]
    ends: IntArray

    @property
    def finished(self) -> list[Finished]:
        """All samples that have ended so far, in order of samples."""
        reasons = self.ends[END_COLUMNS.index("reason")]
        return [_finished(self.ends, sample) for sample in np.flatnonzero(reasons >= 0).tolist()]


def _finished(ends: IntArray, sample: int) -> Finished:
    return Finished(sample, *ends[:, sample].tolist())


def read_snapshot(state: IntArray) -> Snapshot:
    """What a host copy of the state says; it keeps nothing of the array."""
    state = state.copy()
    header = dict(zip(HEADER, state[: len(HEADER)].tolist(), strict=True))
    num_slots, num_samples = header["num_slots"], header["num_samples"]
    end_of_slots = len(HEADER) + len(SLOT_COLUMNS) * num_slots
    columns = state[len(HEADER) : end_of_slots].reshape(-1, num_slots)
    slots = dict(zip(SLOT_COLUMNS, columns, strict=True))
    ends = state[end_of_slots:].reshape(-1, num_samples)
    return Snapshot(
        round=header["round"],
        num_rows=header["num_rows"],
        num_active=header["num_active"],
        num_waiting=num_samples - header["next_sample"],
        num_finished=header["num_finished"],
        **{name: slots[name] for name in SLOT_COLUMNS[: SLOT_COLUMNS.index("first_row")]},
        ended=[_finished(ends, s) for s in slots["ended_sample"].tolist() if s >= 0],
        ends=ends,
    )
