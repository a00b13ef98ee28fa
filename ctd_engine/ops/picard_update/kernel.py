"""The Picard update in one pass: x0, solver step, noise, scan and squared changes.

Two shapes of work for the same mathematics. `_walk_kernel` walks along the window with a block of
D per program: per element and point it reads x_old, m (and the null m) once and writes x and x0
once, 12 bytes and the model's output in fp32; the noise is made in registers. `_tile_kernel` holds
[L, D] and scans it in parallel, for few windows of few elements; lags are read again, from cache.

Accumulation is in the state's type, fp32 or fp64. Squared changes are summed per block and
reduced in order by `trajectory_error`: no atomics, bitwise repeatable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from ctd_engine.ops import _tuning
from ctd_engine.ops._device import (
    NOISE_COUNTER,
    NOISE_GIVEN,
    NOISE_NONE,
    clip_keep_nan,
    guided,
    philox_normal_1d,
    philox_normal_2d,
)
from ctd_engine.ops._device import ring_offset as _at

if TYPE_CHECKING:
    from ctd_engine.ops.picard_update import Coefficients, Windows

STREAM_STEP = tl.constexpr(1)


@triton.jit
def _walk_kernel(
    # inputs
    x_ptr,  # [S, R, D] states, updated in place
    x0_ptr,  # [S, R, D] data predictions, updated in place
    m_ptr,  # [rows, D] raw model outputs
    m_null_ptr,  # [rows, D], read if HAS_GUIDANCE
    guidance_ptr,  # [1] guidance scale, read if HAS_GUIDANCE
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
    # output
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
    stride_m_r,
    stride_m_null_r,
    stride_z_r,
    # constants
    K: tl.constexpr,
    NOISE: tl.constexpr,
    CLIP: tl.constexpr,  # a number or None
    HAS_GUIDANCE: tl.constexpr,
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
        new += tl.load(g_ptr + node * K) * change
        if K >= 2:
            new += tl.load(g_ptr + node * K + 1) * change_1
        if K >= 3:
            new += tl.load(g_ptr + node * K + 2) * change_2

        there = _at(node + 1, ring, stride_x_r)
        old = tl.load(x_ptrs + there, mask=mask_d, other=0.0)
        tl.store(x_ptrs + there, new, mask=mask_d)
        change_2 = change_1
        change_1 = change
        change = new - old
        squares = tl.where(mask_d, change * change, 0.0)
        partial = partial_ptr + (entry * max_length + j) * tl.num_programs(1) + pid_d
        tl.store(partial, tl.sum(squares, axis=0))
        x_2 = x_1
        x_1 = x_now
        x_now = old
        x0_2 = x0_1
        x0_1 = x0_now


@triton.jit
def _linear(a_1, b_1, a_2, b_2):
    # d -> a_1 d + b_1, then d -> a_2 d + b_2
    return a_1 * a_2, b_2 + a_2 * b_1


@triton.jit
def _data_at(
    nodes,  # int32 [L, 1]
    rows,  # int64 [L, 1]; below first_row the stored x0 is taken
    first_row,
    mask,
    x_now,  # [L, D] states at the nodes
    x0_ptrs,
    m_ptr,
    m_null_ptr,
    guidance_ptr,
    p_ptr,
    q_ptr,
    offs_d,
    ring,
    stride_x0_r,
    stride_m_r,
    stride_m_null_r,
    CLIP: tl.constexpr,
    HAS_GUIDANCE: tl.constexpr,
):
    # x0 at nodes of the window from the model's output, at nodes before it from the ring
    dtype: tl.constexpr = x0_ptrs.dtype.element_ty
    inside = rows >= first_row
    fresh = mask & inside
    m = tl.load(m_ptr + rows * stride_m_r + offs_d, mask=fresh, other=0.0).to(dtype)
    if HAS_GUIDANCE:
        m_null = tl.load(m_null_ptr + rows * stride_m_null_r + offs_d, mask=fresh, other=0.0)
        m = guided(m, m_null.to(dtype), tl.load(guidance_ptr))
    p = tl.load(p_ptr + nodes, mask=nodes >= 0, other=0.0)
    q = tl.load(q_ptr + nodes, mask=nodes >= 0, other=0.0)
    x0 = p * x_now + q * m
    if CLIP is not None:
        x0 = clip_keep_nan(x0, tl.full((), CLIP, dtype))
    stored = mask & (nodes >= 0) & (rows < first_row)
    before = tl.load(x0_ptrs + _at(tl.maximum(nodes, 0), ring, stride_x0_r), mask=stored, other=0.0)
    return tl.where(inside, x0, before)


@triton.jit
def _tile_kernel(
    # arguments as _walk_kernel's
    x_ptr,
    x0_ptr,
    m_ptr,
    m_null_ptr,
    guidance_ptr,
    z_ptr,
    seed_ptr,
    slot_ptr,
    start_ptr,
    length_ptr,
    first_row_ptr,
    a_ptr,
    b_ptr,
    c_ptr,
    g_ptr,
    p_ptr,
    q_ptr,
    partial_ptr,
    num_elements,
    ring,
    max_length,
    stride_x_s,
    stride_x_r,
    stride_x0_s,
    stride_x0_r,
    stride_m_r,
    stride_m_null_r,
    stride_z_r,
    K: tl.constexpr,
    NOISE: tl.constexpr,
    CLIP: tl.constexpr,
    HAS_GUIDANCE: tl.constexpr,
    BLOCK_L: tl.constexpr,  # at least max_length
    BLOCK_D: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64)
    pid_d = tl.program_id(1).to(tl.int64)
    offs_d = (pid_d * BLOCK_D + tl.arange(0, BLOCK_D))[None, :]
    dtype: tl.constexpr = x_ptr.dtype.element_ty

    # nodes fit 32 bits, whose remainder is one instruction; rows times a stride need 64
    start = tl.load(start_ptr + entry).to(tl.int32)
    length = tl.load(length_ptr + entry).to(tl.int32)
    first_row = tl.load(first_row_ptr + entry)
    slot = tl.load(slot_ptr + entry)
    x_ptrs = x_ptr + slot * stride_x_s + offs_d
    x0_ptrs = x0_ptr + slot * stride_x0_s + offs_d
    offs_l = tl.arange(0, BLOCK_L)[:, None]
    mask_l = offs_l < length
    mask = mask_l & (offs_d < num_elements)
    nodes = start + offs_l
    rows = first_row + offs_l

    new = tl.zeros((BLOCK_L, BLOCK_D), dtype=dtype)
    x0_now = new
    for k in tl.static_range(K):
        back = nodes - k
        mask_k = mask & (back >= 0)
        x_k = tl.load(x_ptrs + _at(tl.maximum(back, 0), ring, stride_x_r), mask=mask_k, other=0.0)
        x0_k = _data_at(
            back,
            rows - k,
            first_row,
            mask_k,
            x_k,
            x0_ptrs,
            m_ptr,
            m_null_ptr,
            guidance_ptr,
            p_ptr,
            q_ptr,
            offs_d,
            ring,
            stride_x0_r,
            stride_m_r,
            stride_m_null_r,
            CLIP,
            HAS_GUIDANCE,
        )
        if k == 0:
            x0_now = x0_k
        new += tl.load(a_ptr + nodes * K + k, mask=mask_l, other=0.0) * x_k
        new += tl.load(b_ptr + nodes * K + k, mask=mask_l, other=0.0) * x0_k
    c = tl.load(c_ptr + nodes, mask=mask_l, other=0.0)
    if NOISE == NOISE_GIVEN:
        z = tl.load(z_ptr + rows * stride_z_r + offs_d, mask=mask, other=0.0).to(dtype)
        new += c * z
    if NOISE == NOISE_COUNTER:
        seed = tl.load(seed_ptr + entry)
        quarter = (pid_d * (BLOCK_D // 4)).to(tl.int32) + tl.arange(0, BLOCK_D // 4)
        z = philox_normal_2d(seed, nodes, STREAM_STEP, quarter[None, :], dtype)
        new += c * z

    there = x_ptrs + _at(nodes + 1, ring, stride_x_r)
    old = tl.load(there, mask=mask, other=0.0)
    # d_{i+1} = G_i d_i + (base - old), from d = 0 at the window's first point
    step = tl.where(mask, new - old, 0.0)
    g = tl.load(g_ptr + nodes * K, mask=mask_l, other=0.0) + tl.zeros_like(new)
    _, change = tl.associative_scan((g, step), 0, _linear)
    # G d of what came before alone: exactly 0 where nothing has changed, so that base stays
    new += change - step
    # every thread has read the old window before any writes the new one
    tl.debug_barrier()
    tl.store(x0_ptrs + _at(nodes, ring, stride_x0_r), x0_now, mask=mask)
    tl.store(there, new, mask=mask)
    change = new - old
    squares = tl.where(mask, change * change, 0.0)
    offs_l = tl.arange(0, BLOCK_L)
    partial = partial_ptr + (entry * max_length + offs_l) * tl.num_programs(1) + pid_d
    tl.store(partial, tl.sum(squares, axis=1), mask=offs_l < length)


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
    blocks: _tuning.Blocks,
) -> torch.Tensor:
    """The same with given blocks, for tests and tuning."""
    _, ring, num_elements = x.shape
    c, w = coefficients, windows
    num_blocks = _tuning.ceil_div(num_elements, blocks.elements)
    partials = x.new_empty(len(w.slot), w.max_length, num_blocks)
    guidance = x
    if m_null is not None:
        guidance = torch.full((1,), guidance_scale, dtype=x.dtype, device=x.device)
    # an unused pointer gets any tensor
    given, null, seed = (t if t is not None else x for t in (z, m_null, seeds))
    noise = NOISE_GIVEN if z is not None else NOISE_COUNTER if seeds is not None else NOISE_NONE
    arguments = dict(
        x_ptr=x,
        x0_ptr=x0,
        m_ptr=m,
        m_null_ptr=null,
        guidance_ptr=guidance,
        z_ptr=given,
        seed_ptr=seed if seeds is not None else w.slot,
        slot_ptr=w.slot,
        start_ptr=w.start,
        length_ptr=w.length,
        first_row_ptr=w.first_row,
        a_ptr=c.A,
        b_ptr=c.B,
        c_ptr=c.C,
        g_ptr=c.G,
        p_ptr=c.P,
        q_ptr=c.Q,
        partial_ptr=partials,
        num_elements=num_elements,
        ring=ring,
        max_length=w.max_length,
        stride_x_s=x.stride(0),
        stride_x_r=x.stride(1),
        stride_x0_s=x0.stride(0),
        stride_x0_r=x0.stride(1),
        stride_m_r=m.stride(0),
        stride_m_null_r=null.stride(0),
        stride_z_r=given.stride(0),
        K=c.A.shape[1],
        NOISE=noise,
        CLIP=c.clip,
        HAS_GUIDANCE=m_null is not None,
        BLOCK_D=blocks.elements,
        num_warps=blocks.num_warps,
    )
    grid = (len(w.slot), num_blocks)
    if blocks.length:
        _tile_kernel[grid](**arguments, BLOCK_L=blocks.length)
    else:
        _walk_kernel[grid](**arguments)
    return partials
