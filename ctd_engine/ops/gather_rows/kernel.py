"""Row gather in one pass: reads a row of the ring, writes it scaled in the model's dtype.

Bytes per element: 4 read and 2 or 4 written; the product is taken in the state's type.
"""

import torch
import triton
import triton.language as tl

from ctd_engine.ops import _tuning
from ctd_engine.ops._device import ring_offset


@triton.jit
def _gather_kernel(
    # inputs
    x_ptr,  # [S, R, D] states
    row_slot_ptr,  # [rows] int64
    row_node_ptr,  # [rows] int64
    input_scale_ptr,  # [N]
    model_time_ptr,  # [N]
    # outputs
    out_ptr,  # [rows, D], contiguous
    time_ptr,  # [rows]
    # sizes
    num_elements,  # D
    ring,  # R
    # strides in elements; the last one is 1
    stride_x_s,
    stride_x_r,
    # constants
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    pid_d = tl.program_id(1).to(tl.int64)
    offs_d = pid_d * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = offs_d < num_elements
    slot = tl.load(row_slot_ptr + row)
    node = tl.load(row_node_ptr + row).to(tl.int32)
    x_ptrs = x_ptr + slot * stride_x_s + ring_offset(node, ring, stride_x_r) + offs_d
    scaled = tl.load(input_scale_ptr + node) * tl.load(x_ptrs, mask=mask_d, other=0.0)
    out_ptrs = out_ptr + row * num_elements + offs_d
    tl.store(out_ptrs, scaled.to(out_ptr.dtype.element_ty), mask=mask_d)
    if pid_d == 0:
        tl.store(time_ptr + row, tl.load(model_time_ptr + node))


def gather_rows_triton(
    x: torch.Tensor,
    row_slot: torch.Tensor,
    row_node: torch.Tensor,
    input_scale: torch.Tensor,
    model_time: torch.Tensor,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch; arguments as `gather_rows`."""
    num_rows, num_elements = len(row_slot), x.shape[2]
    out = torch.empty(num_rows, num_elements, dtype=dtype, device=x.device)
    time = torch.empty(num_rows, dtype=model_time.dtype, device=x.device)
    if num_rows == 0:
        return out, time
    blocks = _tuning.elementwise_blocks(num_elements)
    _gather_kernel[(num_rows, _tuning.ceil_div(num_elements, blocks.elements))](
        x_ptr=x,
        row_slot_ptr=row_slot.contiguous(),
        row_node_ptr=row_node.contiguous(),
        input_scale_ptr=input_scale.contiguous(),
        model_time_ptr=model_time.contiguous(),
        out_ptr=out,
        time_ptr=time,
        num_elements=num_elements,
        ring=x.shape[1],
        stride_x_s=x.stride(0),
        stride_x_r=x.stride(1),
        BLOCK_D=blocks.elements,
        num_warps=blocks.num_warps,
    )
    return out, time
