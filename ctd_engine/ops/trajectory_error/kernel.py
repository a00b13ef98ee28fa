"""The error check of all windows in one small launch: ordered sums, comparison, first open point.

Reads the partial sums once, writes two numbers per window. One program per window, no atomics.
"""

import torch
import triton
import triton.language as tl

from ctd_engine.ops import _tuning


@triton.jit
def _error_kernel(
    # inputs
    partial_ptr,  # [A, L, blocks] sums of squared changes, contiguous
    threshold_ptr,  # [N + 1]
    start_ptr,  # [A] int64
    length_ptr,  # [A] int64
    # outputs
    accepted_ptr,  # [A] int64
    finite_ptr,  # [A] int64
    # sizes
    num_elements,  # D
    max_length,  # L
    num_blocks,
    # constants
    BLOCK_L: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64)
    offs_l = tl.arange(0, BLOCK_L)
    start = tl.load(start_ptr + entry)
    length = tl.load(length_ptr + entry)
    inside = offs_l < length
    partial_ptrs = partial_ptr + (entry * max_length + offs_l) * num_blocks
    total = tl.zeros((BLOCK_L,), dtype=partial_ptr.dtype.element_ty)
    for block in range(num_blocks):
        total += tl.load(partial_ptrs + block, mask=inside, other=0.0)
    error = total / num_elements
    threshold = tl.load(threshold_ptr + start + 1 + offs_l, mask=inside, other=0.0)
    # NaN compares false both times: never converged, never finite; the mask of the second ends
    # both counts at the window's length, since accepted is at most num_finite
    is_converged = error <= threshold
    is_finite = inside & (error < float("inf"))
    num_converged = tl.min(tl.where(is_converged, BLOCK_L, offs_l), axis=0).to(tl.int64)
    num_finite = tl.min(tl.where(is_finite, BLOCK_L, offs_l), axis=0).to(tl.int64)
    accepted = tl.maximum(tl.minimum(num_converged + 1, num_finite), 1)
    tl.store(accepted_ptr + entry, accepted)
    tl.store(finite_ptr + entry, num_finite)


def trajectory_error_triton(
    partials: torch.Tensor,
    num_elements: int,
    threshold: torch.Tensor,
    start: torch.Tensor,
    length: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch; arguments as `trajectory_error`."""
    num_windows, max_length, num_blocks = partials.shape
    accepted, finite = start.new_empty(num_windows), start.new_empty(num_windows)
    if num_windows == 0:
        return accepted, finite
    _error_kernel[(num_windows,)](
        partial_ptr=partials.contiguous(),
        threshold_ptr=threshold.contiguous(),
        start_ptr=start.contiguous(),
        length_ptr=length.contiguous(),
        accepted_ptr=accepted,
        finite_ptr=finite,
        num_elements=num_elements,
        max_length=max_length,
        num_blocks=num_blocks,
        BLOCK_L=_tuning.power_of_two(max_length),
        num_warps=4 if max_length > 128 else 1,
    )
    return accepted, finite
