"""Results out of the slots whose samples ended, starts into the slots that take new ones."""

from __future__ import annotations

import torch

from ctd_engine.scheduling.plan import CONVERGED, MAX_ROUNDS

__all__ = ["turn_over_reference_"]


def turn_over_reference_(
    x: torch.Tensor,  # [S, R, D]
    x0: torch.Tensor,  # [S, R, D]
    samples: torch.Tensor,  # [B, D]
    ended_sample: torch.Tensor,  # [S]
    ended_reason: torch.Tensor,  # [S]
    ended_known: torch.Tensor,  # [S]
    admitted_sample: torch.Tensor,  # [S]
    num_nodes: int,
) -> None:
    """samples[e] = x_N, x0_{known - 1} or NaN; then x_0 of the slot = samples[a]."""
    ring = x.shape[1]
    for slot in (ended_sample >= 0).nonzero()[:, 0].tolist():
        reason, known = int(ended_reason[slot]), int(ended_known[slot])
        if reason == CONVERGED:
            result = x[slot, num_nodes % ring]
        elif reason == MAX_ROUNDS and known >= 1:
            result = x0[slot, (known - 1) % ring]
        else:
            result = torch.full_like(x[slot, 0], torch.nan)
        samples[ended_sample[slot]] = result
    admitted = (admitted_sample >= 0).nonzero()[:, 0]
    x[admitted, 0] = samples[admitted_sample[admitted]]
