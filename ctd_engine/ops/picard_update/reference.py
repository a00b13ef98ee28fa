"""One Picard iteration of every window, in PyTorch. The specification of the kernels."""

from __future__ import annotations

import torch

__all__ = ["banded_step", "data_prediction", "picard_scan"]


def data_prediction(
    x: torch.Tensor, m: torch.Tensor, p: torch.Tensor, q: torch.Tensor, clip: float | None
) -> torch.Tensor:
    """x0_i = clip(P_i x_i + Q_i m_i) for rows x, m [rows, D] and p, q [rows]."""
    x0 = p[:, None] * x + q[:, None] * m
    return x0 if clip is None else x0.clamp(-clip, clip)


def banded_step(
    a: torch.Tensor,  # [rows, K]
    b: torch.Tensor,  # [rows, K]
    noise: torch.Tensor | None,  # C_i z_i, [rows, D]
    x: torch.Tensor,  # [rows, K, D]: x_i, x_{i-1}, ...
    x0: torch.Tensor,  # [rows, K, D]
) -> torch.Tensor:
    """x_{i+1} = sum_k A[i,k] x_{i-k} + sum_k B[i,k] x0_{i-k} + C_i z_i, [rows, D]."""
    out = a[:, :1] * x[:, 0]
    for k in range(1, a.shape[1]):
        out = out + a[:, k : k + 1] * x[:, k]
    for k in range(b.shape[1]):
        out = out + b[:, k : k + 1] * x0[:, k]
    return out if noise is None else out + noise


def picard_scan(
    base: torch.Tensor,  # [A, L, D]: one solver step from the old states
    old: torch.Tensor,  # [A, L, D]: the old states that the steps lead to
    g: torch.Tensor,  # [A, L, K]
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_new_{i+1} = base_{i+1} + sum_k G[i,k] d_{i-k},  d_i = x_new_i - x_old_i,  d_start = 0.

    This is design form  G x_new + (A - G) x_old + B m + C z  with the terms in x_old collected
    in `base`: a change d of exactly 0 leaves the solver's own step untouched, bit for bit.

    Returns:
        x_new [A, L, D] and mean_d d² [A, L].
    """
    new = torch.empty_like(base)
    errors = base.new_empty(base.shape[:2])
    zero = torch.zeros_like(base[:, 0])
    changes = [zero] * g.shape[2]  # d_i, d_{i-1}, ...
    for j in range(base.shape[1]):
        new_j = base[:, j]
        for k, change in enumerate(changes):
            new_j = new_j + g[:, j, k, None] * change
        change = new_j - old[:, j]
        new[:, j] = new_j
        errors[:, j] = change.square().mean(-1)
        changes = [change, *changes[:-1]]
    return new, errors
