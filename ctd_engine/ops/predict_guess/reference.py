"""First guess of points that enter a window: hold x0, run the recurrence with the true noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ctd_engine.noise import philox_normal

if TYPE_CHECKING:
    from ctd_engine.ops.picard_update import Coefficients

__all__ = ["predict_guess_reference_"]


def predict_guess_reference_(
    x: torch.Tensor,  # [S, R, D]
    x0: torch.Tensor,  # [S, R, D]
    slot: torch.Tensor,  # [A]
    known: torch.Tensor,  # [A]
    count: torch.Tensor,  # [A]
    max_count: int,
    coefficients: Coefficients,
    *,
    z: torch.Tensor | None,  # [A, L, D]
    seeds: torch.Tensor | None,  # [A]
) -> None:
    """x_{i+1} = sum_k A[i,k] x_{i-k} + (sum_k B[i,k]) x0_hold + C_i z_i for i = known + j."""
    ring, order, c = x.shape[1], coefficients.A.shape[1], coefficients
    # before the first model call nothing is held; a predecessor's NaN may still lie there
    held = x0[slot, (known - 1) % ring].where(known[:, None] > 0, 0.0)
    back = (known[:, None] - torch.arange(order, device=x.device)).clamp(min=0)
    states = list(x[slot[:, None], back % ring].unbind(1))
    for j in range(max_count):
        # entries with fewer points repeat their last node and are not written
        node = (known + j).clamp(max=len(c.C) - 1)
        new = c.B[node].sum(-1)[:, None] * held
        for k, state in enumerate(states):
            new = new + c.A[node, k, None] * state
        if z is not None:
            new = new + c.C[node][:, None] * z[:, j].to(x.dtype)
        elif seeds is not None:
            noise = philox_normal(seeds, node, x.shape[2], dtype=x.dtype)
            new = new + c.C[node][:, None] * noise
        written = j < count
        x[slot[written], (known[written] + 1 + j) % ring] = new[written]
        states = [new, *states[:-1]]
