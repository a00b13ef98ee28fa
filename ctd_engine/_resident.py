"""The rounds of a parallel run with the scheduler beside the model: no round waits for the host.

One round, all of it enqueued: guess, gather, model, update, check, schedule, turn over. The host
reads the scheduler's state one round late, from pinned memory, and enqueues the next round while
the device works on this one. On a CUDA device a round is one graph per number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from ctd_engine._graphs import GraphedCalls, GraphSwitch
from ctd_engine._mailbox import Mailbox
from ctd_engine._request import Request
from ctd_engine._trajectory import TrajectoryStore
from ctd_engine.ops.picard_update import Windows
from ctd_engine.ops.turn_over import turn_over_
from ctd_engine.scheduling.device import DeviceScheduler
from ctd_engine.scheduling.state import Snapshot

__all__ = ["ResidentRounds", "row_buckets"]

# rounds that are enqueued before the outcome of the first of them is known
LOOKAHEAD = 2


def row_buckets(max_rows: int) -> list[int]:
    """Numbers of rows that get a graph: powers of two below `max_rows`, and `max_rows`."""
    powers = [1 << p for p in range(max_rows.bit_length()) if 1 << p < max_rows]
    return [*powers, max_rows]


@dataclass
class ResidentRounds:
    """Buffers of one run, its rounds, and what the host knows of them.

    The number of rows of a round is an upper bound of what the device may ask for, so that every
    decision is the device's and the same as on a host that waits; rows beyond it are padding.

    Args:
        request: what to sample.
        store: the rings, with as many slots as the scheduler.
        scheduler: on the store's device.
        window_size: the longest window.
        max_rows: rows of a round at most.
        model_dtype: of the model's input.
        switch: whether the rounds of a size are recorded in a CUDA graph.
    """

    request: Request
    store: TrajectoryStore
    scheduler: DeviceScheduler
    window_size: int
    max_rows: int
    model_dtype: torch.dtype
    switch: GraphSwitch
    samples: torch.Tensor = field(init=False)
    num_rows_run: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        # a sample's start until it ends, its result after that
        self.samples = self.request.starts()
        self._run_round = GraphedCalls(self._round, self.store.x.device, self.switch)
        self._mailbox = Mailbox(self.scheduler.state, LOOKAHEAD + 1)
        self._buckets = row_buckets(self.max_rows)
        self._begin()

    def restart(self, request: Request) -> None:
        """Begin anew with another request of the same form; buffers and graphs stay."""
        self.request.load(request)
        self.samples.copy_(request.starts())
        self.store.clear_record()
        self._begin()

    def _begin(self) -> None:
        self._enqueued = self._known = 0
        self.scheduler.begin()
        self._turn_over()
        self._mailbox.post(0)
        self.latest = self._read(0)
        self._moved = np.ones_like(self.latest.start)

    def _read(self, number: int) -> Snapshot:
        return self.scheduler.read(self._mailbox.wait(number))

    def next(self) -> Snapshot | None:
        """The state after one more round; None when every sample has ended.

        Keeps the device busy: while the outcome of a round is awaited the next one is enqueued,
        unless the awaited one is likely to be the last. A round too many moves nothing.
        """
        if self.latest.num_active == 0:
            return None
        while self._enqueued - self._known < LOOKAHEAD:
            ahead = self._enqueued - self._known
            if ahead > 0 and self._may_end():
                break
            self._enqueue(self._rows_needed(ahead))
        return self._advance()

    def drain(self) -> Iterator[Snapshot]:
        """The states after the rounds that are enqueued; the rings are then in the last one."""
        while self._known < self._enqueued:
            yield self._advance()

    def _advance(self) -> Snapshot:
        before = self.latest
        self._known += 1
        self.latest = self._read(self._known)
        stays = before.sample == self.latest.sample
        self._moved = np.where(stays, self.latest.start - before.start, 1)
        return self.latest

    def _may_end(self) -> bool:
        """Whether the next round is likely to be the last."""
        now = self.latest
        is_active = now.sample >= 0
        # a window may reach the last node long before it converges there: twice its last move
        likely = np.minimum(now.length, 2 * self._moved)
        is_last = (now.start + likely)[is_active] >= self.store.num_nodes
        return now.num_waiting == 0 and bool(is_last.all())

    def _rows_needed(self, ahead: int) -> int:
        """The smallest bucket that holds whatever the device may want."""
        now = self.latest
        rows = now.num_rows if ahead == 0 else self.scheduler.most_rows_next(now)
        return next(bucket for bucket in self._buckets if bucket >= rows)

    def _enqueue(self, rows: int) -> None:
        self._run_round(rows)
        self.num_rows_run += rows
        self._enqueued += 1
        self._mailbox.post(self._enqueued)

    def _round(self, rows: int) -> None:
        """Enqueue one round of at most `rows` rows; nothing here may wait."""
        s = self.scheduler
        row_sample = s.row_sample[:rows]
        windows = Windows(
            slot=s.slot,
            start=s.start,
            length=s.length,
            first_row=s.first_row,
            row_slot=s.row_slot[:rows],
            row_node=s.row_node[:rows],
            row_entry=s.row_entry[:rows],
            row_offset=s.row_offset[:rows],
            max_length=self.window_size,
            known=s.known,
        )
        count = s.start + s.length - s.known
        self.store.fill(s.slot, s.sample, s.known, count, self.window_size)
        x, t = self.store.model_rows(windows.row_slot, windows.row_node, self.model_dtype)
        m, m_null = self.request.denoiser(x, t, row_sample)
        accepted, finite, _ = self.store.update(
            windows, s.sample, row_sample, m, m_null, self.request.denoiser.guidance_scale
        )
        s.step(accepted, finite)
        self._turn_over()

    def _turn_over(self) -> None:
        s = self.scheduler
        turn_over_(
            self.store.x,
            self.store.x0,
            self.samples,
            s.ended_sample,
            s.ended_reason,
            s.ended_known,
            s.admitted_sample,
            self.store.num_nodes,
            backend=self.store.backend,
        )
