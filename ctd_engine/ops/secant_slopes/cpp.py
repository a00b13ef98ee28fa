"""Secant slopes in one pass on the CPU: csrc/cpu/secant_slopes.cpp.

Every operation is the reference's but for the order of the sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ctd_engine.ops import _cpp

if TYPE_CHECKING:
    from ctd_engine.ops.picard_update import Coefficients, Windows

__all__ = ["secant_slopes_cpp"]


def secant_slopes_cpp(
    x: torch.Tensor,
    x0: torch.Tensor,
    change: torch.Tensor,
    m: torch.Tensor,
    windows: Windows,
    known: torch.Tensor,
    coefficients: Coefficients,
    *,
    m_null: torch.Tensor | None,
    guidance_scale: float,
) -> torch.Tensor:
    """Call the kernel; arguments as `secant_slopes`."""
    w, dtype = windows, x.dtype
    slopes = x.new_empty(len(w.row_slot))
    # what may be a copy is held by a name until the call returns
    m_rows, m = _cpp.rows(m, dtype)  # type: ignore[assignment]
    null_rows, m_null = _cpp.rows(m_null, dtype)
    tables, held = _cpp.tables(coefficients)
    indices = _cpp.flat(w.row_slot, w.row_node, w.row_entry, known)
    _cpp.function("secant_slopes", dtype)(
        x=_cpp.ring(x),
        x0=_cpp.ring(x0),
        change=_cpp.ring(change),
        m=m_rows,
        m_null=null_rows,
        tables=tables,
        indices=(*(t.data_ptr() for t in indices), len(known)),
        slopes=slopes.data_ptr(),
        shape=(*x.shape[:2], len(w.row_slot), x.shape[2]),
        guidance_scale=guidance_scale,
        clip=coefficients.clip,
        max_threads=torch.get_num_threads(),
    )
    del held
    return slopes
