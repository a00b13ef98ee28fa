"""One Picard iteration of every window, in PyTorch. The specification of the kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ctd_engine.noise import philox_normal

if TYPE_CHECKING:
    from ctd_engine.ops.picard_update import Coefficients, Windows

__all__ = [
    "banded_step",
    "combine_guidance",
    "data_prediction",
    "picard_scan",
    "picard_update_reference_",
]


def combine_guidance(
    m: torch.Tensor, m_null: torch.Tensor | None, scale: float, dtype: torch.dtype
) -> torch.Tensor:
    """Classifier-free guidance m_null + scale (m - m_null) in dtype (Ho and Salimans 2022)."""
    m = m.to(dtype)
    if m_null is None:
        return m
    null = m_null.to(dtype)
    return null + scale * (m - null)


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
        x_new [A, L, D] and sum_d d² [A, L].
    """
    new = torch.empty_like(base)
    squares = base.new_empty(base.shape[:2])
    zero = base.new_zeros(base.shape[0], base.shape[2])
    changes = [zero] * g.shape[2]  # d_i, d_{i-1}, ...
    for j in range(base.shape[1]):
        new_j = base[:, j]
        for k, change in enumerate(changes):
            new_j = new_j + g[:, j, k, None] * change
        change = new_j - old[:, j]
        new[:, j] = new_j
        squares[:, j] = change.square().sum(-1)
        changes = [change, *changes[:-1]]
    return new, squares


def _history(ring: torch.Tensor, windows: Windows, order: int) -> torch.Tensor:
    # [rows, K, D]; before node 0 the coefficients are 0 and node 0 stands in
    nodes = windows.row_node[:, None] - torch.arange(order, device=ring.device)
    return ring[windows.row_slot[:, None], nodes.clamp(min=0) % ring.shape[1]]


def picard_update_reference_(
    x: torch.Tensor,  # [S, R, D]
    x0: torch.Tensor,  # [S, R, D]
    m: torch.Tensor,  # [rows, D]
    windows: Windows,
    coefficients: Coefficients,
    *,
    z: torch.Tensor | None,  # [rows, D]
    seeds: torch.Tensor | None,  # [A]
    m_null: torch.Tensor | None,  # [rows, D]
    guidance_scale: float,
    slopes: torch.Tensor | None,  # [rows]
    change: torch.Tensor | None,  # [S, R, D]
) -> torch.Tensor:
    """x0 from the outputs, one solver step from every old point, then the scan: [A, L, 1]."""
    ring, w, c = x.shape[1], windows, coefficients
    here, there = w.row_node % ring, (w.row_node + 1) % ring
    order = c.A.shape[1]
    states = _history(x, w, order)
    estimates = data_prediction(
        states[:, 0],
        combine_guidance(m, m_null, guidance_scale, x.dtype),
        c.P[w.row_node],
        c.Q[w.row_node],
        c.clip,
    )
    x0[w.row_slot, here] = estimates
    if seeds is not None:
        z = philox_normal(seeds[w.row_entry], w.row_node, x.shape[2], dtype=x.dtype)
    base_rows = banded_step(
        c.A[w.row_node],
        c.B[w.row_node],
        None if z is None else c.C[w.row_node][:, None] * z.to(x.dtype),
        states,
        estimates[:, None] if order == 1 else _history(x0, w, order),
    )
    old_rows, g_rows = x[w.row_slot, there], c.G[w.row_node]
    if slopes is not None:
        g_rows[:, 0] = slopes
    num_windows, length = len(w.slot), w.max_length
    if len(w.row_slot) == num_windows * length:
        # windows of one length: their rows are the rectangle already
        base, old, g = (
            rows.view(num_windows, length, rows.shape[1]) for rows in (base_rows, old_rows, g_rows)
        )
        new, squares = picard_scan(base, old, g)
        new_rows = new.view(old_rows.shape)
    else:
        # ragged rows -> a padded rectangle for the scan along the window
        padded, at = (num_windows, length), (w.row_entry, w.row_offset)
        base, g = x.new_zeros(*padded, x.shape[2]), x.new_zeros(*padded, order)
        old = torch.zeros_like(base)
        base[at], old[at], g[at] = base_rows, old_rows, g_rows
        new, squares = picard_scan(base, old, g)
        new_rows = new[at]
    x[w.row_slot, there] = new_rows
    if change is not None:
        change[w.row_slot, there] = new_rows - old_rows
    return squares[:, :, None]
