"""Pack (slot, node) rows into the model's batch: x_in = input_scale_i x_i, t = model_time_i."""

from __future__ import annotations

import torch

__all__ = ["gather_rows_reference"]


def gather_rows_reference(
    x: torch.Tensor,  # [S, R, D] ring of states
    row_slot: torch.Tensor,  # [rows]
    row_node: torch.Tensor,  # [rows]
    input_scale: torch.Tensor,  # [N]
    model_time: torch.Tensor,  # [N]
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [rows, D] of the model's input, scaled in the state's precision and cast once."""
    rows = x[row_slot, row_node % x.shape[1]]
    return (input_scale[row_node][:, None] * rows).to(dtype), model_time[row_node]
