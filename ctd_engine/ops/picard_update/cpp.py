"""The Picard update in one pass on the CPU: csrc/cpu/picard_update.cpp.

A window is walked with a chunk of D, whose states and changes stay in cache, so that m, x and x0
are read from memory once. Every operation is the reference's, in its order: the same bits, but for
sums of squares and counter noise. Accumulation is in the state's type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ctd_engine.ops import _cpp

if TYPE_CHECKING:
    from ctd_engine.ops.picard_update import Coefficients, Windows

__all__ = ["CHUNK", "picard_update_cpp"]

# elements whose squared changes are one partial sum; `kChunk` in csrc/cpu/ops.h
CHUNK = 1024


def picard_update_cpp(
    x: torch.Tensor,
    x0: torch.Tensor,
    m: torch.Tensor,
    windows: Windows,
    coefficients: Coefficients,
    *,
    z: torch.Tensor | None,
    seeds: torch.Tensor | None,
    m_null: torch.Tensor | None,
    guidance_scale: float,
    slopes: torch.Tensor | None,
    change: torch.Tensor | None,
) -> torch.Tensor:
    """Call the kernel; arguments as `picard_update_`."""
    w, dtype = windows, x.dtype
    num_slots, num_points, num_elements = x.shape
    # `len` of a tensor costs more than the kernel's call
    num_windows, num_rows = w.slot.shape[0], w.row_slot.shape[0]
    partials = x.new_empty(num_windows, w.max_length, -(-num_elements // CHUNK))
    # what may be a copy is held by a name until the call returns
    m_rows, m = _cpp.rows(m, dtype)  # type: ignore[assignment]
    null_rows, m_null = _cpp.rows(m_null, dtype)
    z_rows, z = _cpp.rows(z, dtype)
    tables, held = _cpp.tables(coefficients)
    entries = _cpp.flat(w.slot, w.start, w.length, w.first_row)
    seeds = None if seeds is None else seeds.contiguous()
    slopes = None if slopes is None else slopes.contiguous()
    _cpp.function("picard_update", dtype)(
        x=_cpp.ring(x),
        x0=_cpp.ring(x0),
        change=_cpp.ring(change),
        m=m_rows,
        m_null=null_rows,
        z=z_rows,
        seeds=_cpp.address(seeds),
        slopes=_cpp.address(slopes),
        tables=tables,
        entries=(*(t.data_ptr() for t in entries), num_windows, w.max_length),
        partials=partials.data_ptr(),
        shape=(num_slots, num_points, num_rows, num_elements),
        guidance_scale=guidance_scale,
        clip=coefficients.clip,
        max_threads=torch.get_num_threads(),
    )
    del held
    return partials
