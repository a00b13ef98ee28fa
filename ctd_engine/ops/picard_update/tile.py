"""The Picard update for few windows of few elements: a tile [L, D], scanned in parallel.

The mathematics, types and accumulation of the walk in `kernel.py`. The whole window is in
registers at once; the points that a step looks back on are read again, from cache.
"""

import triton
import triton.language as tl

from ctd_engine.ops._device import (
    NOISE_COUNTER,
    NOISE_GIVEN,
    STREAM_STEP,
    clip_keep_nan,
    guided,
    philox_normal_2d,
)
from ctd_engine.ops._device import ring_offset as _at


@triton.jit
def _linear(a_1, b_1, a_2, b_2):
    # d -> a_1 d + b_1, then d -> a_2 d + b_2
    return a_1 * a_2, b_2 + a_2 * b_1


@triton.jit
def _data_at(
    nodes,  # int32 [L, 1]
    rows,  # int64 [L, 1]; below first_row the stored x0 is taken
    first_row,
    mask_l,  # bool [L, 1]: rows of the window whose node is not before node 0
    mask,  # [L, D], mask_l and the elements that there are
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
    p = tl.load(p_ptr + nodes, mask=mask_l, other=0.0)
    q = tl.load(q_ptr + nodes, mask=mask_l, other=0.0)
    x0 = p * x_now + q * m
    if CLIP is not None:
        x0 = clip_keep_nan(x0, tl.full((), CLIP, dtype))
    stored = mask & (rows < first_row)
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
    slope_ptr,
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
    change_ptr,
    partial_ptr,
    num_elements,
    ring,
    max_length,
    stride_x_s,
    stride_x_r,
    stride_x0_s,
    stride_x0_r,
    stride_change_s,
    stride_change_r,
    stride_m_r,
    stride_m_null_r,
    stride_z_r,
    K: tl.constexpr,
    NOISE: tl.constexpr,
    CLIP: tl.constexpr,
    HAS_GUIDANCE: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    HAS_CHANGE: tl.constexpr,
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
    mask_d = offs_d < num_elements
    mask = mask_l & mask_d
    nodes = start + offs_l
    rows = first_row + offs_l

    new = tl.zeros((BLOCK_L, BLOCK_D), dtype=dtype)
    x0_now = new
    for k in tl.static_range(K):
        back = nodes - k
        mask_lk = mask_l & (back >= 0)
        mask_k = mask_lk & mask_d
        x_k = tl.load(x_ptrs + _at(tl.maximum(back, 0), ring, stride_x_r), mask=mask_k, other=0.0)
        x0_k = _data_at(
            back,
            rows - k,
            first_row,
            mask_lk,
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
    slope_ptrs = slope_ptr + rows if HAS_SLOPES else g_ptr + nodes * K
    g = tl.load(slope_ptrs, mask=mask_l, other=0.0) + tl.zeros_like(new)
    _, change = tl.associative_scan((g, step), 0, _linear)
    # G d of what came before alone: exactly 0 where nothing has changed, so that base stays
    new += change - step
    # every thread has read the old window before any writes the new one; the interpreter runs one
    # program at a time, so that only a GPU shows a barrier that is missing
    tl.debug_barrier()
    tl.store(x0_ptrs + _at(nodes, ring, stride_x0_r), x0_now, mask=mask)
    tl.store(there, new, mask=mask)
    change = new - old
    if HAS_CHANGE:
        change_ptrs = change_ptr + slot * stride_change_s + offs_d
        tl.store(change_ptrs + _at(nodes + 1, ring, stride_change_r), change, mask=mask)
    squares = tl.where(mask, change * change, 0.0)
    offs_l = tl.arange(0, BLOCK_L)
    partial = partial_ptr + (entry * max_length + offs_l) * tl.num_programs(1) + pid_d
    tl.store(partial, tl.sum(squares, axis=1), mask=offs_l < length)
