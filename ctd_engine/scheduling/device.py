"""The window scheduler beside the model: its state and row lists are tensors of one device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ctd_engine import _checks, _ext
from ctd_engine.scheduling.plan import IntArray
from ctd_engine.scheduling.sizes import checked_sizes
from ctd_engine.scheduling.state import (
    HEADER,
    ROW_COLUMNS,
    SLOT_COLUMNS,
    Snapshot,
    empty_state,
    read_snapshot,
)

__all__ = ["DeviceScheduler"]

MAX_THREADS = 64


class DeviceScheduler:
    """`PyWindowScheduler`'s decisions, one launch per round and never a wait for the device.

    All attributes are int64 tensors on `device` whose addresses stay, so that a CUDA graph may
    read them; `begin` and `step` rewrite their values, and they mean nothing before `begin`.
    An entry is a slot: a slot without rows has length 0. What the last step did to a slot stands
    in `ended_sample`, `ended_reason`, `ended_known` (-1, -1, 0 if nothing ended) and
    `admitted_sample` (-1 if none came). A step after the last sample's end moves nothing.

    Attributes:
        state: all that is known, flat; `read` explains a copy of it.
        rows: [5, max_rows], the row lists below.
        slot, sample, start, length, known, first_row, ended_sample, ended_reason, ended_known,
            admitted_sample: [S]; a free slot's sample is -1.
        row_slot, row_sample, row_node, row_entry, row_offset: [max_rows] as in `RoundPlan`, with
            `row_entry` a slot; from `num_rows` on they are padding, all zero.

    Args:
        device: "cpu" or a CUDA device.
        num_samples, num_nodes, window_size, max_rows, num_slots, first_length, max_rounds,
            lockstep, window_ratio, first_window, far_stride: see `PyWindowScheduler`;
            `first_window` is `window_size` by default.
        num_threads: host threads that decide together on "cpu". More than one is slower: it runs
            the logic of a CUDA block, barriers included, where there is no GPU.

    Raises:
        ValueError: a size is out of range, or the sizes do not fit together.
        RuntimeError: the scheduler cannot run on the device; all reasons are listed.
    """

    sample: torch.Tensor
    start: torch.Tensor
    length: torch.Tensor
    known: torch.Tensor
    first_row: torch.Tensor
    ended_sample: torch.Tensor
    ended_reason: torch.Tensor
    ended_known: torch.Tensor
    admitted_sample: torch.Tensor
    row_slot: torch.Tensor
    row_sample: torch.Tensor
    row_node: torch.Tensor
    row_entry: torch.Tensor
    row_offset: torch.Tensor

    def __init__(
        self,
        device: torch.device | str,
        *,
        num_samples: int,
        num_nodes: int,
        window_size: int,
        max_rows: int,
        num_slots: int,
        first_length: int,
        max_rounds: int,
        lockstep: bool = False,
        window_ratio: int = 0,
        first_window: int | None = None,
        far_stride: int = 1,
        num_threads: int = 1,
    ) -> None:
        sizes = checked_sizes(
            num_samples=num_samples,
            num_nodes=num_nodes,
            window_size=window_size,
            max_rows=max_rows,
            num_slots=num_slots,
            first_length=first_length,
            max_rounds=max_rounds,
            lockstep=lockstep,
            window_ratio=window_ratio,
            first_window=first_window,
            far_stride=far_stride,
        )
        self._num_threads = _checks.require_int("num_threads", num_threads, minimum=1)
        if num_threads > MAX_THREADS:
            raise ValueError(f"num_threads must be at most {MAX_THREADS}, got {num_threads}")
        self.device = _usable(torch.device(device))
        self._extension: Any = _ext.load(required=True)
        self._sizes = sizes
        self.num_slots, self._max_rows = sizes["num_slots"], sizes["max_rows"]
        state = torch.from_numpy(empty_state(sizes))
        if self.device.type == "cuda":
            # a copy from pinned memory is enqueued, any other waits
            state = state.pin_memory().to(self.device, non_blocking=True)
        self.state = state
        self.rows = torch.zeros(
            (len(ROW_COLUMNS), self._max_rows), dtype=torch.int64, device=self.device
        )
        self.slot = torch.arange(self.num_slots, device=self.device)
        end_of_slots = len(HEADER) + len(SLOT_COLUMNS) * self.num_slots
        columns = self.state[len(HEADER) : end_of_slots].view(-1, self.num_slots)
        for name, column in zip(SLOT_COLUMNS, columns, strict=True):
            setattr(self, name, column)
        for name, row in zip(ROW_COLUMNS, self.rows, strict=True):
            setattr(self, name, row)
        self._has_begun = False

    def begin(self) -> None:
        """Forget what was; admit the first samples and plan their round."""
        addresses = (self.state.data_ptr(), self.rows.data_ptr())
        if self.device.type == "cpu":
            self._extension.schedule_begin(*addresses, self._num_threads)
        else:
            with torch.cuda.device(self.device):
                self._extension.schedule_begin_cuda(*addresses, *self._launch())
        self._has_begun = True

    def step(self, accepted: torch.Tensor, finite: torch.Tensor) -> None:
        """Move every window after its round, let waiting samples in and plan the next round.

        A device cannot refuse values without a wait, so `finite` is clamped to [0, length] and
        `accepted` to [1, finite]; what stands at a slot without rows is ignored.

        Args:
            accepted: int64 [S], how far a window's start moves.
            finite: int64 [S], how many leading new points are finite; with 0 the sample ends
                DIVERGED.

        Raises:
            ValueError: `begin` was not called, or an argument's device, type, shape or strides
                are wrong; nothing moves.
        """
        if not self._has_begun:
            raise ValueError("step() needs a planned round: call begin() first")
        self._require("accepted", accepted)
        self._require("finite", finite)
        tensors = (self.state, self.rows, accepted, finite)
        addresses = [tensor.data_ptr() for tensor in tensors]
        if self.device.type == "cpu":
            self._extension.schedule_step(*addresses, self._num_threads)
        else:
            with torch.cuda.device(self.device):
                self._extension.schedule_step_cuda(*addresses, *self._launch())

    def read(self, snapshot: IntArray) -> Snapshot:
        """What a host copy of `state` says."""
        expected = (self.state.numel(),)
        if snapshot.shape != expected or snapshot.dtype != np.int64:
            raise ValueError(
                f"snapshot must be a copy of state, int64 {expected}, got {snapshot.dtype} "
                f"{snapshot.shape}"
            )
        return read_snapshot(snapshot)

    def most_rows_next(self, now: Snapshot) -> int:
        """An upper bound of `num_rows` one step after `now`, whatever the step is told.

        Every window of `now` may be accepted whole, which lengthens the next one the most; a
        sample that takes the place of one that ends begins with `first_length`.
        """
        s = self._sizes
        length, reach = (values[now.sample >= 0] for values in (now.length, now.reach))
        longest = np.full(len(length), s["window_size"])
        if s["window_ratio"] > 0:
            further = np.maximum(reach, (3 * reach + 512 * length) // 4)
            wanted = np.maximum(1, -(-s["window_ratio"] * further // 65536))
            if now.num_waiting > 0:
                wanted = np.maximum(wanted, s["first_length"])
            longest = np.minimum(longest, wanted)
        return min(s["max_rows"], int(longest.sum()))

    def _launch(self) -> tuple[int, int, int, int]:
        stream = torch.cuda.current_stream(self.device).cuda_stream
        return self.num_slots, self._max_rows, self.device.index, stream

    def _require(self, name: str, tensor: torch.Tensor) -> None:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.device != self.device:
            raise ValueError(f"{name} must be on {self.device}, got {tensor.device}")
        if tensor.dtype != torch.int64:
            raise ValueError(f"{name} must be torch.int64, got {tensor.dtype}")
        if tensor.shape != (self.num_slots,):
            raise ValueError(
                f"{name} must have one entry per slot, shape ({self.num_slots},), "
                f"got {tuple(tensor.shape)}"
            )
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got stride {tensor.stride()}")


def _usable(device: torch.device) -> torch.device:
    """The device with its index, if the scheduler can run there."""
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise ValueError(f"device must be cpu or cuda, got {device}")
    reasons = [_ext.cuda_unavailable_reason(), no_device_reason()]
    told = [f"\n    - {reason}" for reason in reasons if reason is not None]
    if told:
        raise RuntimeError("the window scheduler cannot run on a CUDA device" + "".join(told))
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.device("cuda", index)


def no_device_reason() -> str | None:
    """Why torch has no CUDA device; None when it has one."""
    if torch.cuda.is_available():
        return None
    return (
        "torch is built without CUDA"
        if torch.version.cuda is None
        else "torch finds no CUDA device"
    )
