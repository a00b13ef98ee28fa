"""Trajectory-wide error check, one decision per sample."""

from __future__ import annotations

import torch

from ctd_engine.ops._dispatch import resolve
from ctd_engine.ops.trajectory_error.reference import trajectory_error_reference

__all__ = ["trajectory_error"]


def trajectory_error(
    errors: torch.Tensor,
    threshold: torch.Tensor,
    start: torch.Tensor,
    length: torch.Tensor,
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far every window advances, and how much of it is finite.

    A point is converged when `errors <= threshold`, that is when its mean squared change is at
    most (tolerance scale_i)² (ParaDiGMS, arXiv 2305.16317, Alg. 1, line 8). The window moves to
    its first point that is not converged: that point was made from converged ones.

    Args:
        errors: mean squared changes [A, L] of nodes start + 1 + j, from `picard_update_`.
        threshold: (tolerance scale_i)² [N + 1].
        start, length: int64 [A].
        backend: None or "reference".

    Returns:
        accepted: int64 [A] in [1, length], how many nodes the start moves.
        finite: int64 [A] in [0, length], how many leading new points are finite; 0 means that
            the next point of the final path is not, whatever else is in the window.
    """
    resolve(backend)
    offsets = torch.arange(errors.shape[1], device=errors.device)
    nodes = (start[:, None] + 1 + offsets).clamp(max=len(threshold) - 1)
    return trajectory_error_reference(errors, threshold[nodes], length)
