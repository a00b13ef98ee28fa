"""Trajectory-wide error check, one decision per sample."""

from __future__ import annotations

import torch

from ctd_engine.ops import _checks
from ctd_engine.ops._dispatch import resolve
from ctd_engine.ops.trajectory_error.reference import trajectory_error_reference

__all__ = ["trajectory_error"]


def trajectory_error(
    partials: torch.Tensor,
    num_elements: int,
    threshold: torch.Tensor,
    start: torch.Tensor,
    length: torch.Tensor,
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far every window advances, and how much of it is finite.

    A point is converged when its mean squared change is at most (tolerance scale_i)² (ParaDiGMS,
    arXiv 2305.16317, Alg. 1, line 8). The window moves to its first point that is not converged:
    that point was made from converged ones.

    Args:
        partials: sums of squared changes [A, L, blocks] of nodes start + 1 + j, from
            `picard_update_`; they are added in order and divided by D.
        num_elements: D.
        threshold: (tolerance scale_i)² [N + 1].
        start, length: int64 [A]; what lies beyond a length is not looked at.
        backend: None (Triton on CUDA, C++ on the CPU, else the reference), "reference", "cpp" or
            "triton".

    Returns:
        accepted: int64 [A] in [1, length], how many nodes the start moves.
        finite: int64 [A] in [0, length], how many leading new points are finite; 0 means that
            the next point of the final path is not, whatever else is in the window.

    Raises:
        TypeError: a tensor of another type.
        ValueError: shapes or devices do not fit together, or the backend is unknown.
        RuntimeError: the named backend cannot run on these tensors.
    """
    _checks.check_floats("partials", partials, "[A, L, blocks]")
    device, dtype = partials.device, partials.dtype
    _checks.check_tensor("threshold", threshold, threshold.shape[:1], "[N + 1]", dtype, device)
    _checks.check_indices(partials.shape[0], "[A]", device, {"start": start, "length": length})
    arguments = (partials, num_elements, threshold, start, length)
    chosen = resolve(backend, partials, has_cpp=True)
    if chosen == "triton":
        from ctd_engine.ops.trajectory_error.kernel import trajectory_error_triton

        return trajectory_error_triton(*arguments)
    if chosen == "cpp":
        from ctd_engine.ops.trajectory_error.cpp import trajectory_error_cpp

        return trajectory_error_cpp(*arguments)
    return trajectory_error_reference(*arguments)
