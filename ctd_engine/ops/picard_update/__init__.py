"""Picard update of ragged windows: every sample's window moves one iteration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from ctd_engine.ops import _checks
from ctd_engine.ops._dispatch import resolve
from ctd_engine.ops.picard_update.reference import (
    banded_step,
    combine_guidance,
    data_prediction,
    picard_update_reference_,
)

__all__ = [
    "Coefficients",
    "Windows",
    "banded_step",
    "combine_guidance",
    "data_prediction",
    "picard_update_",
]

MAX_ORDER = 3


@dataclass(frozen=True)
class Coefficients:
    """A solver table in the state's dtype and device, written in x0 (see `SolverTable`).

    A, B [N, K], C [N]: the recurrence; G [N, K]: the Picard method; P, Q [N] and `clip`: x0.
    K is 1, 2 or 3. `is_first_order` says that G is 0 beyond its first column.

    Raises:
        TypeError, ValueError: types, shapes or devices do not fit together.
    """

    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    G: torch.Tensor
    P: torch.Tensor
    Q: torch.Tensor
    clip: float | None

    def __post_init__(self) -> None:
        if self.A.dim() != 2 or not 1 <= self.A.shape[1] <= MAX_ORDER:
            raise ValueError(
                f"A must have shape [N, K] with K from 1 to {MAX_ORDER}, got {tuple(self.A.shape)}"
            )
        shape, dtype, device = tuple(self.A.shape), self.A.dtype, self.A.device
        for name in ("B", "G"):
            _checks.check_tensor(name, getattr(self, name), shape, "[N, K]", dtype, device)
        for name in ("C", "P", "Q"):
            _checks.check_tensor(name, getattr(self, name), shape[:1], "[N]", dtype, device)

    @property
    def order(self) -> int:
        """K, how many states a step looks back on."""
        return self.A.shape[1]

    @cached_property
    def is_first_order(self) -> bool:
        return not bool((self.G[:, 1:] != 0).any())  # sync: once per sampler run


@dataclass(frozen=True)
class Windows:
    """Where a round works: entry a holds nodes `start[a] .. start[a] + length[a]` of `slot[a]`.

    `slot`, `start`, `length`, `first_row` int64 [A]: entry a owns rows `first_row[a] ..
    first_row[a] + length[a] - 1` of the model's batch. The same by row, int64 [rows]: `row_slot`,
    `row_node`, `row_entry` (which entry) and `row_offset` (node less start).

    `known`, int64 [A], is the last node that held a value before the round's guess: nodes before it
    were evaluated in the entry's last round. `secant_slopes` alone reads it.

    Raises:
        TypeError, ValueError: types, shapes or devices do not fit together.
    """

    slot: torch.Tensor
    start: torch.Tensor
    length: torch.Tensor
    first_row: torch.Tensor
    row_slot: torch.Tensor
    row_node: torch.Tensor
    row_entry: torch.Tensor
    row_offset: torch.Tensor
    max_length: int
    known: torch.Tensor | None = None

    def __post_init__(self) -> None:
        device = self.slot.device
        by_entry = {
            "slot": self.slot,
            "start": self.start,
            "length": self.length,
            "first_row": self.first_row,
        }
        if self.known is not None:
            by_entry["known"] = self.known
        by_row = {
            "row_slot": self.row_slot,
            "row_node": self.row_node,
            "row_entry": self.row_entry,
            "row_offset": self.row_offset,
        }
        _checks.check_indices(self.slot.shape[0], "[A]", device, by_entry)
        _checks.check_indices(self.row_slot.shape[0], "[rows]", device, by_row)


def picard_update_(
    x: torch.Tensor,
    x0: torch.Tensor,
    m: torch.Tensor,
    windows: Windows,
    coefficients: Coefficients,
    *,
    z: torch.Tensor | None = None,
    seeds: torch.Tensor | None = None,
    m_null: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
    slopes: torch.Tensor | None = None,
    change: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Update x and x0 in place from the model's outputs; equation 3 of `docs/algorithm.md`.

    Args:
        x: states [S, R, D]; node i of a slot lies at ring position i mod R, R at least
            max_length + K.
        x0: data predictions [S, R, D], same layout and dtype.
        m: raw model outputs [rows, D], any floating-point dtype.
        windows: the round's windows and rows.
        coefficients: the solver, in the dtype of x.
        z: explicit standard normal noise [rows, D].
        seeds: int64 [A], instead of z: noise from the counter, see `ctd_engine.noise`. With
            neither the solver adds no noise.
        m_null: unconditional outputs [rows, D]; m is then m_null + guidance_scale (m - m_null).
        guidance_scale: read with m_null only.
        slopes: [rows] in the dtype of x, in the place of G's first column, row by row; see
            `secant_slopes`.
        change: ring [S, R, D] like x, which receives x_new - x_old of every point that x does.
        backend: None (Triton on CUDA, C++ on the CPU, else the reference), "reference", "cpp" or
            "triton".

    Returns:
        Sums of (x_new - x_old)² over the blocks that D is cut into, [A, max_length, blocks], of
        nodes start + 1 + j. Entries beyond a window's length are undefined.

    Raises:
        TypeError: a tensor of another type.
        ValueError: shapes, strides or devices do not fit together, z and seeds are both given, or
            the backend is unknown.
        RuntimeError: the named backend cannot run on these tensors.
    """
    _check(x, x0, m, windows, coefficients, z, seeds, m_null, slopes, change)
    implementation = picard_update_reference_
    chosen = resolve(backend, x, m, has_cpp=True)
    if chosen == "triton":
        from ctd_engine.ops.picard_update.kernel import picard_update_triton

        implementation = picard_update_triton
    elif chosen == "cpp":
        from ctd_engine.ops.picard_update.cpp import picard_update_cpp

        implementation = picard_update_cpp
    return implementation(
        x,
        x0,
        m,
        windows,
        coefficients,
        z=z,
        seeds=seeds,
        m_null=m_null,
        guidance_scale=guidance_scale,
        slopes=slopes,
        change=change,
    )


def _check(
    x: torch.Tensor,
    x0: torch.Tensor,
    m: torch.Tensor,
    windows: Windows,
    coefficients: Coefficients,
    z: torch.Tensor | None,
    seeds: torch.Tensor | None,
    m_null: torch.Tensor | None,
    slopes: torch.Tensor | None,
    change: torch.Tensor | None,
) -> None:
    c = coefficients
    _checks.check_states(x, x0, windows.max_length, "max_length", c.C, c.order)
    device = x.device
    num_windows, rows = windows.slot.shape[0], (windows.row_slot.shape[0], x.shape[2])
    _checks.check_tensor("windows.slot", windows.slot, (num_windows,), "[A]", torch.int64, device)
    _checks.check_tensor("m", m, rows, "[rows, D]", None, device)
    if m_null is not None:
        _checks.check_tensor("m_null", m_null, rows, "[rows, D]", None, device)
    if slopes is not None:
        _checks.check_tensor("slopes", slopes, rows[:1], "[rows]", x.dtype, device)
    if change is not None:
        _checks.check_ring("change", change, like=x)
    _checks.check_noise(z, seeds, rows, "[rows, D]", num_windows, device)
