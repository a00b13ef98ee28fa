"""Rows of the model on the CPU: csrc/cpu/rows.cpp. PyTorch converts them to other dtypes."""

from __future__ import annotations

import torch

from ctd_engine.ops import _cpp

__all__ = ["gather_rows_cpp"]


def gather_rows_cpp(
    x: torch.Tensor,
    row_slot: torch.Tensor,
    row_node: torch.Tensor,
    input_scale: torch.Tensor,
    model_time: torch.Tensor,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Call the kernel; arguments as `gather_rows`."""
    out = x.new_empty(row_slot.shape[0], x.shape[2])
    row_slot, row_node, input_scale = _cpp.flat(row_slot, row_node, input_scale)
    # of another type they are PyTorch's too
    has_times = model_time.dtype == x.dtype and model_time.is_contiguous()
    times = out.new_empty(out.shape[0]) if has_times else model_time[row_node]
    _cpp.function("gather_rows", x.dtype)(
        x=_cpp.ring(x),
        row_slot=row_slot.data_ptr(),
        row_node=row_node.data_ptr(),
        input_scale=input_scale.data_ptr(),
        model_time=model_time.data_ptr() if has_times else 0,
        out=out.data_ptr(),
        out_time=times.data_ptr() if has_times else 0,
        shape=(*x.shape[:2], *out.shape),
        num_scales=input_scale.shape[0],
        max_threads=torch.get_num_threads(),
    )
    return out if dtype == x.dtype else out.to(dtype), times
