"""Row gather: ragged windows of many samples become one model batch."""

from __future__ import annotations

import torch

from ctd_engine.ops._dispatch import resolve
from ctd_engine.ops.gather_rows.reference import gather_rows_reference

__all__ = ["gather_rows"]


def gather_rows(
    x: torch.Tensor,
    row_slot: torch.Tensor,
    row_node: torch.Tensor,
    input_scale: torch.Tensor,
    dtype: torch.dtype,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """Model inputs [rows, D] in `dtype` for rows (slot, node) of the state ring.

    Args:
        x: states [S, R, D]; node i of a slot lies at ring position i mod R.
        row_slot, row_node: int64 [rows].
        input_scale: [N] in the state's dtype.
        dtype: the model's dtype.
        backend: None or "reference".
    """
    resolve(backend)
    return gather_rows_reference(x, row_slot, row_node, input_scale, dtype)
