"""Turn-over of slots in one launch: most slots have nothing to do and return at once.

Reads one row and writes one row of D per sample that ends or begins. No arithmetic.
"""

import torch
import triton
import triton.language as tl

from ctd_engine.ops import _tuning
from ctd_engine.ops._device import ring_offset
from ctd_engine.scheduling.plan import CONVERGED, MAX_ROUNDS

_CONVERGED = tl.constexpr(CONVERGED)
_MAX_ROUNDS = tl.constexpr(MAX_ROUNDS)


@triton.jit
def _turn_over_kernel(
    # inputs
    x_ptr,  # [S, R, D] states; x_0 of admitted samples is written
    x0_ptr,  # [S, R, D] data predictions
    samples_ptr,  # [B, D], starts in, results out
    ended_sample_ptr,  # [S] int64, -1 for none
    ended_reason_ptr,  # [S] int64
    ended_known_ptr,  # [S] int64
    admitted_sample_ptr,  # [S] int64, -1 for none
    # sizes
    num_elements,  # D
    ring,  # R
    num_nodes,  # N
    # strides in elements; the last one is 1
    stride_x_s,
    stride_x_r,
    stride_x0_s,
    stride_x0_r,
    stride_samples_b,
    # constants
    BLOCK_D: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    offs_d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = offs_d < num_elements
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    x_ptrs = x_ptr + slot * stride_x_s + offs_d
    ended = tl.load(ended_sample_ptr + slot)
    if ended >= 0:
        reason = tl.load(ended_reason_ptr + slot)
        known = tl.load(ended_known_ptr + slot).to(tl.int32)
        result = tl.full((BLOCK_D,), float("nan"), dtype)
        if reason == _CONVERGED:
            last = ring_offset(tl.full((), 0, tl.int32) + num_nodes, ring, stride_x_r)
            result = tl.load(x_ptrs + last, mask=mask_d, other=0.0)
        elif reason == _MAX_ROUNDS and known >= 1:
            x0_ptrs = x0_ptr + slot * stride_x0_s + ring_offset(known - 1, ring, stride_x0_r)
            result = tl.load(x0_ptrs + offs_d, mask=mask_d, other=0.0)
        tl.store(samples_ptr + ended * stride_samples_b + offs_d, result, mask=mask_d)
    # the ring may hold the result where the next start goes
    tl.debug_barrier()
    admitted = tl.load(admitted_sample_ptr + slot)
    if admitted >= 0:
        starts = samples_ptr + admitted * stride_samples_b + offs_d
        tl.store(x_ptrs, tl.load(starts, mask=mask_d, other=0.0), mask=mask_d)


def turn_over_triton_(
    x: torch.Tensor,
    x0: torch.Tensor,
    samples: torch.Tensor,
    ended_sample: torch.Tensor,
    ended_reason: torch.Tensor,
    ended_known: torch.Tensor,
    admitted_sample: torch.Tensor,
    num_nodes: int,
) -> None:
    """Launch; arguments as `turn_over_`."""
    num_slots, ring, num_elements = x.shape
    blocks = _tuning.elementwise_blocks(num_elements)
    _turn_over_kernel[(num_slots, _tuning.ceil_div(num_elements, blocks.elements))](
        x_ptr=x,
        x0_ptr=x0,
        samples_ptr=samples,
        ended_sample_ptr=ended_sample,
        ended_reason_ptr=ended_reason,
        ended_known_ptr=ended_known,
        admitted_sample_ptr=admitted_sample,
        num_elements=num_elements,
        ring=ring,
        num_nodes=num_nodes,
        stride_x_s=x.stride(0),
        stride_x_r=x.stride(1),
        stride_x0_s=x0.stride(0),
        stride_x0_r=x0.stride(1),
        stride_samples_b=samples.stride(0),
        BLOCK_D=blocks.elements,
        num_warps=blocks.num_warps,
    )
