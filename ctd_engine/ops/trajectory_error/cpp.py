"""The error check on the CPU: csrc/cpu/rows.cpp. Partial sums are added in order."""

from __future__ import annotations

import torch

from ctd_engine.ops import _cpp

__all__ = ["trajectory_error_cpp"]


def trajectory_error_cpp(
    partials: torch.Tensor,
    num_elements: int,
    threshold: torch.Tensor,
    start: torch.Tensor,
    length: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Call the kernel; arguments as `trajectory_error`."""
    partials, threshold, start, length = _cpp.flat(partials, threshold, start, length)
    accepted, finite = torch.empty_like(start), torch.empty_like(start)
    _cpp.function("trajectory_error", partials.dtype)(
        partials=partials.data_ptr(),
        shape=tuple(partials.shape),
        num_elements=num_elements,
        threshold=threshold.data_ptr(),
        num_thresholds=threshold.shape[0],
        start=start.data_ptr(),
        length=length.data_ptr(),
        accepted=accepted.data_ptr(),
        finite=finite.data_ptr(),
    )
    return accepted, finite
