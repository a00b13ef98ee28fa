"""Points of windows copied out of the ring on the CPU: csrc/cpu/rows.cpp."""

from __future__ import annotations

import torch

from ctd_engine.ops import _cpp

__all__ = ["record_points_cpp"]


def record_points_cpp(
    record: torch.Tensor,
    ring: torch.Tensor,
    slot: torch.Tensor,
    sample: torch.Tensor,
    first: torch.Tensor,
    length: torch.Tensor,
) -> None:
    """Call the kernel; arguments as `record_points_`."""
    slot, sample, first, length = _cpp.flat(slot, sample, first, length)
    _cpp.function("record_points", ring.dtype)(
        record=_cpp.ring(record),
        ring=_cpp.ring(ring),
        slot=slot.data_ptr(),
        sample=sample.data_ptr(),
        first=first.data_ptr(),
        length=length.data_ptr(),
        num_windows=slot.shape[0],
        record_shape=tuple(record.shape),
        ring_shape=tuple(ring.shape),
    )
