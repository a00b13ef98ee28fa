"""The window scheduler in Python: twin of `csrc/schedule.h`, decision for decision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctd_engine.scheduling.plan import (
    CANCELLED,
    CONVERGED,
    DIVERGED,
    MAX_ROUNDS,
    Finished,
    IntArray,
    RoundPlan,
    require_sizes,
)

__all__ = ["PyWindowScheduler", "share_rows"]

# the smoothed advance and its ratio are kept in units of 1/256: integers, equal in any language
UNIT = 256


@dataclass
class _Entry:
    """An active sample. `length` is 0 until the next round is planned."""

    sample: int
    start: int = 0
    length: int = 0
    known: int = 0
    rounds: int = 0
    evaluations: int = 0
    reach: int = 0
    near: int = 0


def share_rows(wanted: list[int], max_rows: int, turn: int) -> list[int]:
    """Share `max_rows` rows by max-min fairness: nobody gets less so that another gets more.

    Everyone gets min(wanted, level) for the highest level that fits; what is left goes a row each
    to those who want more, beginning with entry `turn` mod A and going round.
    """
    low, high = 0, max(wanted)
    while low < high:
        level = (low + high + 1) // 2
        if sum(min(want, level) for want in wanted) <= max_rows:
            low = level
        else:
            high = level - 1
    given = [min(want, low) for want in wanted]
    left = max_rows - sum(given)
    for i in range(len(wanted)):
        entry = (turn + i) % len(wanted)
        if left > 0 and wanted[entry] > low:
            given[entry] += 1
            left -= 1
    return given


class PyWindowScheduler:
    """Sliding windows of many samples under one budget of model rows.

    Samples 0 .. num_samples - 1 wait in order; a free slot takes the next one. Every round each
    active sample is evaluated on its window, and `step` moves it. All decisions depend on the
    arguments alone.

    With a `window_ratio` each sample's window follows its reach, the smoothed advance: after a
    round, reach = (3 reach + advance) / 4, where a window that was accepted whole counts double,
    because it would have reached further than was seen; a first round of one row, which the first
    guess needs, does not count. The next window is window_ratio * reach long, rounded up, from 1
    to `window_size` points. All of it is in integers: reach and ratio in units of 1/256, reach
    rounded down.

    With a `far_stride` s > 1 the model is asked only at a window's `dense` leading points, those
    that moved little in the last round (`near` of `step`) and at least s, then at every s-th point
    and the last one. A window advances by its dense points at most; where it does and nothing
    beyond moved little, twice as many follow.

    Args:
        num_samples: B.
        num_nodes: N; a sample is finished when its window starts at node N.
        window_size: points per window at most.
        max_rows: rows per round at most, at least `num_slots`.
        num_slots: samples that are active at once.
        first_length: window length of a sample's first round.
        max_rounds: rounds that a sample may take.
        lockstep: all samples advance by the least advance of any (ParaDiGMS); all must be active
            at once with full windows.
        window_ratio: length of a window over the smoothed advance, in units of 1/256; 0 keeps
            windows at `window_size`.
        first_window: length of a sample's first whole window with a `window_ratio`.
        far_stride: s; 1 asks the model at every point.
    """

    def __init__(
        self,
        num_samples: int,
        num_nodes: int,
        window_size: int,
        max_rows: int,
        num_slots: int,
        first_length: int,
        max_rounds: int,
        lockstep: bool = False,
        window_ratio: int = 0,
        first_window: int = 1,
        far_stride: int = 1,
    ) -> None:
        self._num_samples = num_samples
        self._num_nodes = num_nodes
        self._window_size = window_size
        self._max_rows = max_rows
        self._first_length = first_length
        self._max_rounds = max_rounds
        self._lockstep = lockstep
        self._window_ratio = window_ratio
        self._far_stride = far_stride
        self._first_reach = UNIT * UNIT * first_window // window_ratio if window_ratio else 0
        self._slots: list[_Entry | None] = [None] * num_slots
        self._next_sample = 0
        self._num_finished = 0
        self._round = 0
        self._plan: RoundPlan | None = None

    @property
    def round(self) -> int:
        """Rounds that were stepped."""
        return self._round

    @property
    def num_active(self) -> int:
        """Samples that hold a slot."""
        return sum(entry is not None for entry in self._slots)

    @property
    def num_waiting(self) -> int:
        """Samples that have not begun."""
        return self._num_samples - self._next_sample

    @property
    def num_finished(self) -> int:
        """Samples that ended, for whatever reason."""
        return self._num_finished

    def plan(self) -> RoundPlan | None:
        """The round to run now, None when all samples are finished; the same until `step`."""
        if self._plan is not None:
            return self._plan
        for slot, entry in enumerate(self._slots):
            if entry is None and self._next_sample < self._num_samples:
                self._slots[slot] = _Entry(self._next_sample, reach=self._first_reach)
                self._next_sample += 1
        active = [(slot, entry) for slot, entry in enumerate(self._slots) if entry is not None]
        if not active:
            return None
        wanted = [self._rows(entry, self._wanted_length(entry)) for _, entry in active]
        given = share_rows(wanted, self._max_rows, self._round)
        for (_, entry), rows in zip(active, given, strict=True):
            entry.length = self._length(entry, rows)
            # points beyond a window that shrank are dropped, and guessed again when it grows
            entry.known = min(entry.known, entry.start + entry.length)
        self._plan = self._make_plan(active)
        return self._plan

    def _make_plan(self, active: list[tuple[int, _Entry]]) -> RoundPlan:
        def column(values: list[int]) -> IntArray:
            return np.array(values, dtype=np.int64)

        slot = column([slot for slot, _ in active])
        sample = column([entry.sample for _, entry in active])
        start = column([entry.start for _, entry in active])
        offsets = [self._offsets(entry) for _, entry in active]
        row_entry = np.repeat(np.arange(len(active)), [len(of_entry) for of_entry in offsets])
        row_offset = column([offset for of_entry in offsets for offset in of_entry])
        return RoundPlan(
            slot=slot,
            sample=sample,
            start=start,
            length=column([entry.length for _, entry in active]),
            known=column([entry.known for _, entry in active]),
            dense=column([self._dense(entry, entry.length) for _, entry in active]),
            row_slot=slot[row_entry],
            row_sample=sample[row_entry],
            row_node=start[row_entry] + row_offset,
            row_entry=row_entry,
            row_offset=row_offset,
        )

    def _wanted_length(self, entry: _Entry) -> int:
        whole = min(self._window_size, self._num_nodes - entry.start)
        if entry.rounds == 0:
            return min(self._first_length, whole)
        if self._window_ratio == 0:
            return whole
        return min(max(1, -(-self._window_ratio * entry.reach // UNIT**2)), whole)

    def _dense(self, entry: _Entry, length: int) -> int:
        # leading points of a window that have a row each
        if self._far_stride == 1:
            return length
        return min(max(entry.near - entry.start, self._far_stride), length)

    def _rows(self, entry: _Entry, length: int) -> int:
        dense = self._dense(entry, length)
        return dense - (dense - length) // self._far_stride

    def _length(self, entry: _Entry, rows: int) -> int:
        # the longest window that an entry wants and so many rows are enough for
        whole = self._wanted_length(entry)
        dense = self._dense(entry, whole)
        return rows if rows <= dense else min(whole, dense + (rows - dense) * self._far_stride)

    def _offsets(self, entry: _Entry) -> list[int]:
        # which points of its window have rows
        dense, last = self._dense(entry, entry.length), entry.length - 1
        far = range(dense - 1 + self._far_stride, last, self._far_stride)
        return [*range(dense), *far, *([last] if dense <= last else [])]

    def step(
        self, accepted: IntArray, finite: IntArray, near: IntArray | None = None
    ) -> list[Finished]:
        """Move every window after a round.

        Args:
            accepted: int64 [A] in [1, length], how far a window's start moves.
            finite: int64 [A] in [0, length], how many leading new points are finite; with 0 the
                sample ends DIVERGED and its `accepted` is ignored.
            near: int64 [A], leading new points that moved little, clamped to [1, length]; None
                is `accepted`. Nothing but a `far_stride` reads it.

        Returns:
            The samples that ended, in order of slots.

        Raises:
            ValueError: no round is planned, a wrong size, or values out of range; nothing moves.
        """
        if self._plan is None:
            raise ValueError("step() needs a planned round: call plan() first")
        active = [(slot, entry) for slot, entry in enumerate(self._slots) if entry is not None]
        require_sizes(accepted, finite, near, len(active))
        advances, finites = _checked(accepted, finite, [entry.length for _, entry in active])
        still = advances if near is None else [int(n) for n in near]
        advances = [
            min(advance, self._dense(entry, entry.length))
            for advance, (_, entry) in zip(advances, active, strict=True)
        ]
        moving = [a for a, f in zip(advances, finites, strict=True) if f > 0]
        if self._lockstep and moving:
            advances = [min(moving)] * len(advances)
        self._plan = None
        self._round += 1
        finished = []
        moves = zip(active, advances, finites, still, strict=True)
        for (slot, entry), advance, num_finite, num_near in moves:
            reason = self._move(entry, advance, num_finite, num_near)
            if reason is not None:
                finished.append(self._finish(slot, entry, reason))
        return finished

    def _move(self, entry: _Entry, advance: int, num_finite: int, num_near: int) -> int | None:
        # all that had rows of their own was accepted: more would have been
        is_whole = advance == self._dense(entry, entry.length)
        # a first round of one row, which the first guess needs, tells nothing of later windows
        is_telling = entry.length >= 2 or entry.rounds > 0
        if self._window_ratio > 0 and num_finite > 0 and is_telling:
            observed = 2 * advance if is_whole else advance
            entry.reach = (3 * entry.reach + UNIT * observed) // 4
        entry.rounds += 1
        entry.evaluations += self._rows(entry, entry.length)
        num_near = min(max(num_near, 1), entry.length)
        # where x0 between rows is too rough to tell what is near
        is_blind = is_whole and num_near <= advance
        entry.near = entry.start + (3 * advance if is_blind else num_near)
        entry.known = entry.start + num_finite
        entry.length = 0
        if num_finite == 0:
            return DIVERGED
        entry.start += advance
        if entry.start == self._num_nodes:
            return CONVERGED
        return MAX_ROUNDS if entry.rounds >= self._max_rounds else None

    def _finish(self, slot: int, entry: _Entry, reason: int) -> Finished:
        self._slots[slot] = None
        self._num_finished += 1
        return Finished(
            entry.sample, slot, reason, entry.rounds, entry.evaluations, entry.start, entry.known
        )

    def cancel(self) -> list[Finished]:
        """End every active sample, in order of slots, then every waiting one, as CANCELLED."""
        self._plan = None
        finished = [
            self._finish(slot, entry, CANCELLED)
            for slot, entry in enumerate(self._slots)
            if entry is not None
        ]
        for sample in range(self._next_sample, self._num_samples):
            self._num_finished += 1
            finished.append(Finished(sample, -1, CANCELLED, 0, 0, 0, 0))
        self._next_sample = self._num_samples
        return finished


def _checked(
    accepted: IntArray, finite: IntArray, lengths: list[int]
) -> tuple[list[int], list[int]]:
    pairs = list(zip((int(a) for a in accepted), (int(f) for f in finite), strict=True))
    for i, ((advance, num_finite), length) in enumerate(zip(pairs, lengths, strict=True)):
        if not 0 <= num_finite <= length:
            raise ValueError(f"finite[{i}] must be in [0, {length}], got {num_finite}")
        if num_finite > 0 and not 1 <= advance <= num_finite:
            raise ValueError(f"accepted[{i}] must be in [1, finite = {num_finite}], got {advance}")
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
