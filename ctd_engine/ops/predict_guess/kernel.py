"""First guess in one pass: holds x0 in registers and walks along the new points.

Reads the history and the held x0 once, writes each new point once; noise is made in registers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from ctd_engine.ops import _tuning
from ctd_engine.ops._checks import with_unit_stride
from ctd_engine.ops._device import (
    NOISE_COUNTER,
    NOISE_GIVEN,
    NOISE_NONE,
    STREAM_STEP,
    philox_normal_1d,
)
from ctd_engine.ops._device import ring_offset as _at

if TYPE_CHECKING:
    from ctd_engine.ops.picard_update import Coefficients


@triton.jit
def _guess_kernel(
    # inputs
    x_ptr,  # [S, R, D] states, updated in place
    x0_ptr,  # [S, R, D] data predictions
    z_ptr,  # [A, L, D], read if NOISE is given
    seed_ptr,  # [A] int64, read if NOISE is from the counter
    slot_ptr,  # [A] int64
    known_ptr,  # [A] int64
    count_ptr,  # [A] int64
    a_ptr,  # [N, K]
    b_ptr,  # [N, K]
    c_ptr,  # [N]
    # sizes
    num_elements,  # D
    ring,  # R
    # strides in elements; the last one is 1
    stride_x_s,
    stride_x_r,
    stride_x0_s,
    stride_x0_r,
    stride_z_a,
    stride_z_l,
    # constants
    K: tl.constexpr,
    NOISE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64)
    pid_d = tl.program_id(1).to(tl.int64)
    offs_d = pid_d * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = offs_d < num_elements
    quarter = (pid_d * (BLOCK_D // 4)).to(tl.int32) + tl.arange(0, BLOCK_D // 4)
    dtype: tl.constexpr = x_ptr.dtype.element_ty

    known = tl.load(known_ptr + entry).to(tl.int32)
    count = tl.load(count_ptr + entry).to(tl.int32)
    slot = tl.load(slot_ptr + entry)
    x_ptrs = x_ptr + slot * stride_x_s + offs_d
    last = tl.maximum(known - 1, 0)
    mask_last = mask_d & (known >= 1)
    held_ptrs = x0_ptr + slot * stride_x0_s + _at(last, ring, stride_x0_r) + offs_d
    # before the first model call nothing is held
    held = tl.load(held_ptrs, mask=mask_last, other=0.0)
    seed = tl.zeros((), dtype=tl.int64)
    if NOISE == NOISE_COUNTER:
        seed = tl.load(seed_ptr + entry)

    # before node 0 the coefficients are 0
    x_now = tl.load(x_ptrs + _at(known, ring, stride_x_r), mask=mask_d, other=0.0)
    x_1 = tl.zeros((BLOCK_D,), dtype=dtype)
    x_2 = x_1
    if K >= 2:
        x_1 = tl.load(x_ptrs + _at(last, ring, stride_x_r), mask=mask_last, other=0.0)
    if K >= 3:
        back = _at(tl.maximum(known - 2, 0), ring, stride_x_r)
        x_2 = tl.load(x_ptrs + back, mask=mask_d & (known >= 2), other=0.0)
    for j in range(count):
        node = known + j
        gain = tl.load(b_ptr + node * K)
        if K >= 2:
            gain += tl.load(b_ptr + node * K + 1)
        if K >= 3:
            gain += tl.load(b_ptr + node * K + 2)
        new = gain * held + tl.load(a_ptr + node * K) * x_now
        if K >= 2:
            new += tl.load(a_ptr + node * K + 1) * x_1
        if K >= 3:
            new += tl.load(a_ptr + node * K + 2) * x_2
        if NOISE == NOISE_GIVEN:
            z_ptrs = z_ptr + entry * stride_z_a + j * stride_z_l + offs_d
            z = tl.load(z_ptrs, mask=mask_d, other=0.0).to(dtype)
            new += tl.load(c_ptr + node) * z
        if NOISE == NOISE_COUNTER:
            z = philox_normal_1d(seed, node, STREAM_STEP, quarter, dtype)
            new += tl.load(c_ptr + node) * z
        tl.store(x_ptrs + _at(node + 1, ring, stride_x_r), new, mask=mask_d)
        x_2 = x_1
        x_1 = x_now
        x_now = new


def predict_guess_triton(
    x: torch.Tensor,
    x0: torch.Tensor,
    slot: torch.Tensor,
    known: torch.Tensor,
    count: torch.Tensor,
    max_count: int,
    coefficients: Coefficients,
    *,
    z: torch.Tensor | None,
    seeds: torch.Tensor | None,
) -> None:
    """Launch; arguments as `predict_guess_`."""
    if len(slot) == 0:
        return
    num_elements = x.shape[2]
    c = coefficients
    blocks = _tuning.scan(
        len(slot), max_count, num_elements, first_order=False, element_size=x.element_size()
    )
    given = x if z is None else with_unit_stride(z)
    noise = NOISE_GIVEN if z is not None else NOISE_COUNTER if seeds is not None else NOISE_NONE
    _guess_kernel[(len(slot), _tuning.ceil_div(num_elements, blocks.elements))](
        x_ptr=x,
        x0_ptr=x0,
        z_ptr=given,
        seed_ptr=slot if seeds is None else seeds.contiguous(),
        slot_ptr=slot.contiguous(),
        known_ptr=known.contiguous(),
        count_ptr=count.contiguous(),
        a_ptr=c.A.contiguous(),
        b_ptr=c.B.contiguous(),
        c_ptr=c.C.contiguous(),
        num_elements=num_elements,
        ring=x.shape[1],
        stride_x_s=x.stride(0),
        stride_x_r=x.stride(1),
        stride_x0_s=x0.stride(0),
        stride_x0_r=x0.stride(1),
        stride_z_a=given.stride(0),
        stride_z_l=given.stride(1),
        K=c.order,
        NOISE=noise,
        BLOCK_D=blocks.elements,
        num_warps=blocks.num_warps,
    )
