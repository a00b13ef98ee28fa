"""The Picard update in one pass: x0, solver step, noise, scan and squared changes.

Two shapes of work for the same mathematics. `_walk_kernel` walks along the window with a block of
D per program: per element and point it reads x_old, m (and the null m) once and writes x and x0
once, 12 bytes and the model's output in fp32; the noise is made in registers. `_tile_kernel`, in
`tile.py`, is for few windows of few elements.

Accumulation is in the state's type, fp32 or fp64. Squared changes are summed per block and
reduced in order by `trajectory_error`: no atomics, bitwise repeatable.
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
    clip_keep_nan,
    guided,
    philox_normal_1d,
)
from ctd_engine.ops._device import ring_offset as _at
from ctd_engine.ops.picard_update.tile import _tile_kernel

if TYPE_CHECKING:
    from ctd_engine.ops.picard_update import Coefficients, Windows


@triton.jit
def _walk_kernel(
    # inputs
    x_ptr,  # [S, R, D] states, updated in place
    x0_ptr,  # [S, R, D] data predictions, updated in place
    m_ptr,  # [rows, D] raw model outputs
    m_null_ptr,  # [rows, D], read if HAS_GUIDANCE
    guidance_ptr,  # [1] guidance scale, read if HAS_GUIDANCE
    slope_ptr,  # [rows] in the place of G's first column, read if HAS_SLOPES
    z_ptr,  # [rows, D], read if NOISE is given
    seed_ptr,  # [A] int64, read if NOISE is from the counter
    slot_ptr,  # [A] int64
    start_ptr,  # [A] int64
    length_ptr,  # [A] int64
    first_row_ptr,  # [A] int64
    a_ptr,  # [N, K] coefficients
    b_ptr,  # [N, K]
    c_ptr,  # [N]
    g_ptr,  # [N, K]
    p_ptr,  # [N]
    q_ptr,  # [N]
    # outputs
    change_ptr,  # [S, R, D] x_new - x_old, written if HAS_CHANGE
    partial_ptr,  # [A, max_length, blocks] sums of squared changes
    # sizes
    num_elements,  # D
    ring,  # R
    max_length,
    # strides in elements; the last one is 1
    stride_x_s,
    stride_x_r,
    stride_x0_s,
    stride_x0_r,
    stride_change_s,
    stride_change_r,
    stride_m_r,
    stride_m_null_r,
    stride_z_r,
    # constants
    K: tl.constexpr,
    NOISE: tl.constexpr,
    CLIP: tl.constexpr,  # a number or None
    HAS_GUIDANCE: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    HAS_CHANGE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64)
    pid_d = tl.program_id(1).to(tl.int64)
    offs_d = pid_d * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = offs_d < num_elements
    quarter = (pid_d * (BLOCK_D // 4)).to(tl.int32) + tl.arange(0, BLOCK_D // 4)
    dtype: tl.constexpr = x_ptr.dtype.element_ty

    # nodes fit 32 bits, whose remainder is one instruction; rows times a stride need 64
    start = tl.load(start_ptr + entry).to(tl.int32)
    length = tl.load(length_ptr + entry).to(tl.int32)
    first_row = tl.load(first_row_ptr + entry)
    slot = tl.load(slot_ptr + entry)
    x_ptrs = x_ptr + slot * stride_x_s + offs_d
    x0_ptrs = x0_ptr + slot * stride_x0_s + offs_d
    change_ptrs = change_ptr + slot * stride_change_s + offs_d
    seed = tl.zeros((), dtype=tl.int64)
    if NOISE == NOISE_COUNTER:
        seed = tl.load(seed_ptr + entry)

    # the node now and one and two before it; before node 0 the coefficients are 0
    x_now = tl.load(x_ptrs + _at(start, ring, stride_x_r), mask=mask_d, other=0.0)
    x_1 = tl.zeros((BLOCK_D,), dtype=dtype)
    x_2, x0_1, x0_2 = x_1, x_1, x_1
    change, change_1, change_2 = x_1, x_1, x_1
    if K >= 2:
        back = tl.maximum(start - 1, 0)
        has_1 = mask_d & (start >= 1)
        x_1 = tl.load(x_ptrs + _at(back, ring, stride_x_r), mask=has_1, other=0.0)
        x0_1 = tl.load(x0_ptrs + _at(back, ring, stride_x0_r), mask=has_1, other=0.0)
    if K >= 3:
        back = tl.maximum(start - 2, 0)
        has_2 = mask_d & (start >= 2)
        x_2 = tl.load(x_ptrs + _at(back, ring, stride_x_r), mask=has_2, other=0.0)
        x0_2 = tl.load(x0_ptrs + _at(back, ring, stride_x0_r), mask=has_2, other=0.0)

    for j in range(length):
        node = start + j
        row = first_row + j
        m = tl.load(m_ptr + row * stride_m_r + offs_d, mask=mask_d, other=0.0).to(dtype)
        if HAS_GUIDANCE:
            m_null = tl.load(m_null_ptr + row * stride_m_null_r + offs_d, mask=mask_d, other=0.0)
            m = guided(m, m_null.to(dtype), tl.load(guidance_ptr))
        x0_now = tl.load(p_ptr + node) * x_now + tl.load(q_ptr + node) * m
        if CLIP is not None:
            x0_now = clip_keep_nan(x0_now, tl.full((), CLIP, dtype))
        tl.store(x0_ptrs + _at(node, ring, stride_x0_r), x0_now, mask=mask_d)

        new = tl.load(a_ptr + node * K) * x_now
        if K >= 2:
            new += tl.load(a_ptr + node * K + 1) * x_1
        if K >= 3:
            new += tl.load(a_ptr + node * K + 2) * x_2
        new += tl.load(b_ptr + node * K) * x0_now
        if K >= 2:
            new += tl.load(b_ptr + node * K + 1) * x0_1
        if K >= 3:
            new += tl.load(b_ptr + node * K + 2) * x0_2
        if NOISE == NOISE_GIVEN:
            z = tl.load(z_ptr + row * stride_z_r + offs_d, mask=mask_d, other=0.0).to(dtype)
            new += tl.load(c_ptr + node) * z
        if NOISE == NOISE_COUNTER:
            z = philox_normal_1d(seed, node, STREAM_STEP, quarter, dtype)
            new += tl.load(c_ptr + node) * z
        slope_ptrs = slope_ptr + row if HAS_SLOPES else g_ptr + node * K
        new += tl.load(slope_ptrs) * change
        if K >= 2:
            new += tl.load(g_ptr + node * K + 1) * change_1
        if K >= 3:
            new += tl.load(g_ptr + node * K + 2) * change_2

        # no barrier: a thread stores what it has loaded itself, see `_tuning.WALKS`
        there = _at(node + 1, ring, stride_x_r)
        old = tl.load(x_ptrs + there, mask=mask_d, other=0.0)
        tl.store(x_ptrs + there, new, mask=mask_d)
        change_2 = change_1
        change_1 = change
        change = new - old
        if HAS_CHANGE:
            tl.store(change_ptrs + _at(node + 1, ring, stride_change_r), change, mask=mask_d)
        squares = tl.where(mask_d, change * change, 0.0)
        partial = partial_ptr + (entry * max_length + j) * tl.num_programs(1) + pid_d
        tl.store(partial, tl.sum(squares, axis=0))
        x_2 = x_1
        x_1 = x_now
        x_now = old
        x0_2 = x0_1
        x0_1 = x0_now


def picard_update_triton(
    x: torch.Tensor,
    x0: torch.Tensor,
    m: torch.Tensor,
    windows: Windows,
    coefficients: Coefficients,
    *,
    z: torch.Tensor | None,
    seeds: torch.Tensor | None,
    m_null: torch.Tensor | None,
    guidance_scale: float,
    slopes: torch.Tensor | None,
    change: torch.Tensor | None,
) -> torch.Tensor:
    """Launch one of the two kernels; arguments as `picard_update_`."""
    return launch(
        x,
        x0,
        m,
        windows,
        coefficients,
        z=z,
        seeds=seeds,
        m_null=m_null,
        guidance_scale=guidance_scale,
        slopes=slopes,
        change=change,
        blocks=_tuning.scan(
            len(windows.slot),
            windows.max_length,
            x.shape[2],
            first_order=coefficients.is_first_order,
            element_size=x.element_size(),
        ),
    )


def launch(
    x: torch.Tensor,
    x0: torch.Tensor,
    m: torch.Tensor,
    windows: Windows,
    coefficients: Coefficients,
    *,
    z: torch.Tensor | None,
    seeds: torch.Tensor | None,
    m_null: torch.Tensor | None,
    guidance_scale: float,
    slopes: torch.Tensor | None = None,
    change: torch.Tensor | None = None,
    blocks: _tuning.Blocks,
) -> torch.Tensor:
    """The same with given blocks, for tests and tuning."""
    _, ring, num_elements = x.shape
    c, w = coefficients, windows
    num_blocks = _tuning.ceil_div(num_elements, blocks.elements)
    partials = x.new_empty(len(w.slot), w.max_length, num_blocks)
    if partials.numel() == 0:
        return partials
    m, z, m_null = (t if t is None else with_unit_stride(t) for t in (m, z, m_null))
    guidance = x
    if m_null is not None:
        guidance = torch.full((1,), guidance_scale, dtype=x.dtype, device=x.device)
    # an unused pointer gets any tensor
    given, null, into = (t if t is not None else x for t in (z, m_null, change))
    noise = NOISE_GIVEN if z is not None else NOISE_COUNTER if seeds is not None else NOISE_NONE
    arguments = dict(
        x_ptr=x,
        x0_ptr=x0,
        m_ptr=m,
        m_null_ptr=null,
        guidance_ptr=guidance,
        slope_ptr=c.G if slopes is None else slopes.contiguous(),
        z_ptr=given,
        seed_ptr=w.slot if seeds is None else seeds.contiguous(),
        slot_ptr=w.slot.contiguous(),
        start_ptr=w.start.contiguous(),
        length_ptr=w.length.contiguous(),
        first_row_ptr=w.first_row.contiguous(),
        a_ptr=c.A.contiguous(),
        b_ptr=c.B.contiguous(),
        c_ptr=c.C.contiguous(),
        g_ptr=c.G.contiguous(),
        p_ptr=c.P.contiguous(),
        q_ptr=c.Q.contiguous(),
        change_ptr=into,
        partial_ptr=partials,
        num_elements=num_elements,
        ring=ring,
        max_length=w.max_length,
        stride_x_s=x.stride(0),
        stride_x_r=x.stride(1),
        stride_x0_s=x0.stride(0),
        stride_x0_r=x0.stride(1),
        stride_change_s=into.stride(0),
        stride_change_r=into.stride(1),
        stride_m_r=m.stride(0),
        stride_m_null_r=null.stride(0),
        stride_z_r=given.stride(0),
        K=c.order,
        NOISE=noise,
        CLIP=c.clip,
        HAS_GUIDANCE=m_null is not None,
        HAS_SLOPES=slopes is not None,
        HAS_CHANGE=change is not None,
        BLOCK_D=blocks.elements,
        num_warps=blocks.num_warps,
    )
    grid = (len(w.slot), num_blocks)
    if blocks.length:
        _tile_kernel[grid](**arguments, BLOCK_L=blocks.length)
    else:
        _walk_kernel[grid](**arguments)
    return partials
