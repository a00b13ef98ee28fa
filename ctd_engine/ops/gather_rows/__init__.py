"""Row gather: ragged windows of many samples become one model batch."""

from __future__ import annotations

import torch

from ctd_engine.ops import _checks
from ctd_engine.ops._dispatch import resolve
from ctd_engine.ops.gather_rows.reference import gather_rows_reference

__all__ = ["gather_rows"]


def gather_rows(
    x: torch.Tensor,
    row_slot: torch.Tensor,
    row_node: torch.Tensor,
    input_scale: torch.Tensor,
    model_time: torch.Tensor,
    dtype: torch.dtype,
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Model inputs [rows, D] in `dtype`, and model times [rows], for rows (slot, node).

    Args:
        x: states [S, R, D]; node i of a slot lies at ring position i mod R.
        row_slot, row_node: int64 [rows].
        input_scale: [N] in the state's dtype.
        model_time: [N]; times keep their dtype, half precision would round timesteps.
        dtype: the model's dtype.
        backend: None (Triton on CUDA, C++ on the CPU, else the reference), "reference", "cpp" or
            "triton".

    Raises:
        TypeError: a tensor of another type, or a dtype that is not floating-point.
        ValueError: shapes, strides or devices do not fit together, or the backend is unknown.
        RuntimeError: the named backend cannot run on these tensors.
    """
    _checks.check_ring("x", x)
    device = x.device
    indices = {"row_slot": row_slot, "row_node": row_node}
    _checks.check_indices(row_slot.shape[0], "[rows]", device, indices)
    num_nodes = model_time.shape[:1]
    _checks.check_tensor("model_time", model_time, num_nodes, "[N]", None, device)
    _checks.check_tensor("input_scale", input_scale, num_nodes, "[N]", x.dtype, device)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype}")
    arguments = (x, row_slot, row_node, input_scale, model_time, dtype)
    chosen = resolve(backend, x, has_cpp=True)
    if chosen == "triton":
        from ctd_engine.ops.gather_rows.kernel import gather_rows_triton

        return gather_rows_triton(*arguments)
    if chosen == "cpp":
        from ctd_engine.ops.gather_rows.cpp import gather_rows_cpp

        return gather_rows_cpp(*arguments)
    return gather_rows_reference(*arguments)
