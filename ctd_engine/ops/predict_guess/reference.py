"""First guess of points that enter a window: hold x0, run the recurrence with the true noise."""

from __future__ import annotations

import torch

__all__ = ["predict_guess_reference"]


def predict_guess_reference(
    history: torch.Tensor,  # [A, K, D]: x at the last known node and before
    hold: torch.Tensor,  # [A, D]: the held x0
    a: torch.Tensor,  # [A, L, K]
    b: torch.Tensor,  # [A, L]: sum_k B[i, k]
    noise: torch.Tensor | None,  # [A, L, D]: C_i z_i
) -> torch.Tensor:
    """x_{i+1} = sum_k A[i,k] x_{i-k} + (sum_k B[i,k]) x0_hold + C_i z_i, [A, L, D]."""
    states = list(history.unbind(1))
    out = hold.new_empty(*b.shape, hold.shape[-1])
    for j in range(b.shape[1]):
        x = b[:, j, None] * hold
        for k, state in enumerate(states):
            x = x + a[:, j, k, None] * state
        if noise is not None:
            x = x + noise[:, j]
        out[:, j] = x
        states = [x, *states[:-1]]
    return out
