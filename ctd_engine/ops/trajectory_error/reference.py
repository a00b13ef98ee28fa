"""How far each window may advance: the first point that is not converged."""

from __future__ import annotations

import torch

__all__ = ["trajectory_error_reference"]


def trajectory_error_reference(
    errors: torch.Tensor,  # [A, L] mean squared change of node start + 1 + j
    threshold: torch.Tensor,  # [A, L] (tolerance scale_i)²
    length: torch.Tensor,  # [A]
) -> tuple[torch.Tensor, torch.Tensor]:
    """accepted, finite [A]: see `trajectory_error`. NaN compares false, so it never converges."""
    inside = torch.arange(errors.shape[1], device=errors.device) < length[:, None]
    num_converged = (errors <= threshold).cumprod(1).sum(1)
    # this mask ends both counts at the window's length, since accepted is at most num_finite
    is_finite = torch.isfinite(errors) & inside
    num_finite = is_finite.cumprod(1).sum(1)
    accepted = torch.minimum(num_converged + 1, num_finite).clamp(min=1)
    return accepted, num_finite
