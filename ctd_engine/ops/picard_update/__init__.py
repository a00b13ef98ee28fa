"""Picard update of ragged windows: every sample's window moves one iteration."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ctd_engine.ops._dispatch import resolve
from ctd_engine.ops.picard_update.reference import banded_step, data_prediction, picard_scan

__all__ = ["Coefficients", "Windows", "banded_step", "data_prediction", "picard_update_"]


@dataclass(frozen=True)
class Coefficients:
    """A solver table in the state's dtype and device, written in x0 (see `SolverTable`).

    A, B [N, K], C [N]: the recurrence; G [N, K]: the Picard method; P, Q [N] and `clip`: x0.
    """

    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    G: torch.Tensor
    P: torch.Tensor
    Q: torch.Tensor
    clip: float | None


@dataclass(frozen=True)
class Windows:
    """Where a round works: entry a holds nodes `start[a] .. start[a] + length[a]` of `slot[a]`.

    `slot`, `start`, `length` int64 [A]; the rows of the model's batch are `row_slot`, `row_node`,
    `row_entry` (which entry) and `row_offset` (node less start), int64 [rows].
    """

    slot: torch.Tensor
    start: torch.Tensor
    length: torch.Tensor
    row_slot: torch.Tensor
    row_node: torch.Tensor
    row_entry: torch.Tensor
    row_offset: torch.Tensor
    max_length: int


def _history(ring: torch.Tensor, windows: Windows, order: int) -> torch.Tensor:
    # [rows, K, D]; before node 0 the coefficients are 0 and node 0 stands in
    nodes = windows.row_node[:, None] - torch.arange(order, device=ring.device)
    return ring[windows.row_slot[:, None], nodes.clamp(min=0) % ring.shape[1]]


def picard_update_(
    x: torch.Tensor,
    x0: torch.Tensor,
    m: torch.Tensor,
    z: torch.Tensor | None,
    windows: Windows,
    coefficients: Coefficients,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """Update x and x0 in place from the model's outputs; equation 3.2 of `docs/algorithm.md`.

    Args:
        x: states [S, R, D]; node i of a slot lies at ring position i mod R.
        x0: data predictions [S, R, D], same layout.
        m: raw model outputs [rows, D].
        z: standard normal noise [rows, D], or None for a solver without noise.
        windows: the round's windows and rows.
        coefficients: the solver.
        backend: None or "reference".

    Returns:
        mean_d (x_new - x_old)² [A, max_length] of nodes start + 1 + j; +inf beyond the window.
    """
    resolve(backend)
    ring, w, c = x.shape[1], windows, coefficients
    here = w.row_node % ring
    x0[w.row_slot, here] = data_prediction(
        x[w.row_slot, here], m, c.P[w.row_node], c.Q[w.row_node], c.clip
    )
    noise = None if z is None else c.C[w.row_node][:, None] * z
    order = c.A.shape[1]
    base_rows = banded_step(
        c.A[w.row_node],
        c.B[w.row_node],
        noise,
        _history(x, w, order),
        _history(x0, w, order),
    )
    # ragged rows -> a padded rectangle for the scan along the window
    padded = (len(w.slot), w.max_length)
    base = x.new_zeros(*padded, x.shape[2])
    old = torch.zeros_like(base)
    g = x.new_zeros(*padded, order)
    at = (w.row_entry, w.row_offset)
    there = (w.row_node + 1) % ring
    base[at] = base_rows
    old[at] = x[w.row_slot, there]
    g[at] = c.G[w.row_node]
    new, changes = picard_scan(base, old, g)
    x[w.row_slot, there] = new[at]
    errors = x.new_full(padded, torch.inf)
    errors[at] = changes[at]
    return errors
