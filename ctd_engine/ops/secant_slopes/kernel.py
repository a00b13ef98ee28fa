"""Secant slopes in one pass: x0, its change, and two sums over the elements of a row.

Reads x, change, x0 and m (and the null m) once, 12 bytes and the model's output per element in
fp32; writes one number per row. One program per row, sums in the state's type and in one order:
bitwise repeatable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from ctd_engine.ops import _tuning
from ctd_engine.ops._checks import with_unit_stride
from ctd_engine.ops._device import clip_keep_nan, guided
from ctd_engine.ops._device import ring_offset as _at

if TYPE_CHECKING:
    from ctd_engine.ops.picard_update import Coefficients, Windows


@triton.jit
def _slopes_kernel(
    # inputs
    x_ptr,  # [S, R, D] states
    x0_ptr,  # [S, R, D] data predictions of the evaluations before
    change_ptr,  # [S, R, D] how far the states have moved since
    m_ptr,  # [rows, D] raw model outputs
    m_null_ptr,  # [rows, D], read if HAS_GUIDANCE
    guidance_ptr,  # [1] guidance scale, read if HAS_GUIDANCE
    row_slot_ptr,  # [rows] int64
    row_node_ptr,  # [rows] int64
    row_entry_ptr,  # [rows] int64
    known_ptr,  # [A] int64
    a_ptr,  # [N, K] coefficients
    b_ptr,  # [N, K]
    p_ptr,  # [N]
    q_ptr,  # [N]
    # output
    slope_ptr,  # [rows]
    # sizes
    num_elements,  # D
    ring,  # R
    # strides in elements; the last one is 1
    stride_x_s,
    stride_x_r,
    stride_x0_s,
    stride_x0_r,
    stride_change_s,
    stride_change_r,
    stride_m_r,
    stride_m_null_r,
    # constants
    K: tl.constexpr,
    CLIP: tl.constexpr,  # a number or None
    HAS_GUIDANCE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    slot = tl.load(row_slot_ptr + row)
    node = tl.load(row_node_ptr + row).to(tl.int32)
    known = tl.load(known_ptr + tl.load(row_entry_ptr + row))
    x_ptrs = x_ptr + slot * stride_x_s + _at(node, ring, stride_x_r)
    x0_ptrs = x0_ptr + slot * stride_x0_s + _at(node, ring, stride_x0_r)
    change_ptrs = change_ptr + slot * stride_change_s + _at(node, ring, stride_change_r)
    m_ptrs = m_ptr + row * stride_m_r
    m_null_ptrs = m_null_ptr + row * stride_m_null_r
    p, q = tl.load(p_ptr + node), tl.load(q_ptr + node)

    products = tl.zeros((BLOCK_D,), dtype=dtype)
    squares = products
    for first in range(0, num_elements, BLOCK_D):
        offs_d = first + tl.arange(0, BLOCK_D)
        mask_d = offs_d < num_elements
        m = tl.load(m_ptrs + offs_d, mask=mask_d, other=0.0).to(dtype)
        if HAS_GUIDANCE:
            m_null = tl.load(m_null_ptrs + offs_d, mask=mask_d, other=0.0)
            m = guided(m, m_null.to(dtype), tl.load(guidance_ptr))
        now = p * tl.load(x_ptrs + offs_d, mask=mask_d, other=0.0) + q * m
        if CLIP is not None:
            now = clip_keep_nan(now, tl.full((), CLIP, dtype))
        moved = tl.load(change_ptrs + offs_d, mask=mask_d, other=0.0)
        products += moved * (now - tl.load(x0_ptrs + offs_d, mask=mask_d, other=0.0))
        squares += moved * moved

    a = tl.load(a_ptr + node * K)
    b = tl.load(b_ptr + node * K)
    for k in tl.static_range(1, K):
        a += tl.load(a_ptr + node * K + k)
        b += tl.load(b_ptr + node * K + k)
    length = tl.sum(squares, axis=0)
    slope = a + b * (tl.sum(products, axis=0) / tl.where(length > 0.0, length, 1.0))
    # what has not moved, NaN and infinities fail one of the comparisons: no pair
    is_pair = (node < known) & (length > 0.0)
    is_pair = is_pair & (slope < float("inf")) & (slope > float("-inf"))
    slope = tl.where(slope < 0.0, 0.0, tl.where(slope > 1.0, 1.0, slope))
    tl.store(slope_ptr + row, tl.where(is_pair, slope, 1.0))


def secant_slopes_triton(
    x: torch.Tensor,
    x0: torch.Tensor,
    change: torch.Tensor,
    m: torch.Tensor,
    windows: Windows,
    known: torch.Tensor,
    coefficients: Coefficients,
    *,
    m_null: torch.Tensor | None,
    guidance_scale: float,
) -> torch.Tensor:
    """Launch; arguments as `secant_slopes`."""
    num_rows, num_elements = m.shape
    c, w = coefficients, windows
    slopes = x.new_empty(num_rows)
    if num_rows == 0:
        return slopes
    m = with_unit_stride(m)
    # an unused pointer gets any tensor
    guidance, null = x, x
    if m_null is not None:
        guidance = torch.full((1,), guidance_scale, dtype=x.dtype, device=x.device)
        null = with_unit_stride(m_null)
    blocks = _tuning.elementwise_blocks(num_elements)
    _slopes_kernel[(num_rows,)](
        x_ptr=x,
        x0_ptr=x0,
        change_ptr=change,
        m_ptr=m,
        m_null_ptr=null,
        guidance_ptr=guidance,
        row_slot_ptr=w.row_slot.contiguous(),
        row_node_ptr=w.row_node.contiguous(),
        row_entry_ptr=w.row_entry.contiguous(),
        known_ptr=known.contiguous(),
        a_ptr=c.A.contiguous(),
        b_ptr=c.B.contiguous(),
        p_ptr=c.P.contiguous(),
        q_ptr=c.Q.contiguous(),
        slope_ptr=slopes,
        num_elements=num_elements,
        ring=x.shape[1],
        stride_x_s=x.stride(0),
        stride_x_r=x.stride(1),
        stride_x0_s=x0.stride(0),
        stride_x0_r=x0.stride(1),
        stride_change_s=change.stride(0),
        stride_change_r=change.stride(1),
        stride_m_r=m.stride(0),
        stride_m_null_r=null.stride(0),
        K=c.order,
        CLIP=c.clip,
        HAS_GUIDANCE=m_null is not None,
        BLOCK_D=blocks.elements,
        num_warps=blocks.num_warps,
    )
    return slopes
