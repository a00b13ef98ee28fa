"""Slopes of the update from the last two evaluations of a node, in PyTorch. The specification."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ctd_engine.ops.picard_update.reference import combine_guidance, data_prediction

if TYPE_CHECKING:
    from ctd_engine.ops.picard_update import Coefficients, Windows

__all__ = ["secant_slopes_reference"]


def secant_slopes_reference(
    x: torch.Tensor,  # [S, R, D]
    x0: torch.Tensor,  # [S, R, D], of the evaluations before
    change: torch.Tensor,  # [S, R, D]
    m: torch.Tensor,  # [rows, D]
    windows: Windows,
    known: torch.Tensor,  # [A]
    coefficients: Coefficients,
    *,
    m_null: torch.Tensor | None,  # [rows, D]
    guidance_scale: float,
) -> torch.Tensor:
    """J = <d, d x0> / <d, d>, then sum_k A[i,k] + J sum_k B[i,k] in [0, 1]; 1 without a pair."""
    w, c = windows, coefficients
    at = w.row_slot, w.row_node % x.shape[1]
    m = combine_guidance(m, m_null, guidance_scale, x.dtype)
    now = data_prediction(x[at], m, c.P[w.row_node], c.Q[w.row_node], c.clip)
    moved = change[at]
    j = (moved * (now - x0[at])).sum(1) / moved.square().sum(1)
    slopes = c.A[w.row_node].sum(1) + c.B[w.row_node].sum(1) * j
    # 0 / 0 where a point has not moved: no pair either
    is_pair = (w.row_node < known[w.row_entry]) & torch.isfinite(slopes)
    return slopes.clamp(0.0, 1.0).where(is_pair, 1.0)
