"""How far each window may advance: the first point that is not converged."""

from __future__ import annotations

import torch

__all__ = ["trajectory_error_reference"]


def trajectory_error_reference(
    partials: torch.Tensor,  # [A, L, blocks] sums of squared changes of node start + 1 + j
    num_elements: int,  # D
    threshold: torch.Tensor,  # [N + 1] (tolerance scale_i)²
    start: torch.Tensor,  # [A]
    length: torch.Tensor,  # [A]
) -> tuple[torch.Tensor, torch.Tensor]:
    """accepted, finite [A]: see `trajectory_error`. NaN compares false, so it never converges."""
    errors = partials.sum(2) / num_elements
    offsets = torch.arange(errors.shape[1], device=errors.device)
    nodes = (start[:, None] + 1 + offsets).clamp(max=len(threshold) - 1)
    num_converged = (errors <= threshold[nodes]).cumprod(1).sum(1)
    # this mask ends both counts at the window's length, since accepted is at most num_finite
    is_finite = torch.isfinite(errors) & (offsets < length[:, None])
    num_finite = is_finite.cumprod(1).sum(1)
    accepted = torch.minimum(num_converged + 1, num_finite).clamp(min=1)
    return accepted, num_finite
