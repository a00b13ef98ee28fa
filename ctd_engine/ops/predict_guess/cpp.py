"""The first guess on the CPU: csrc/cpu/predict_guess.cpp, in the reference's order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ctd_engine.ops import _cpp

if TYPE_CHECKING:
    from ctd_engine.ops.picard_update import Coefficients

__all__ = ["predict_guess_cpp"]


def predict_guess_cpp(
    x: torch.Tensor,
    x0: torch.Tensor,
    slot: torch.Tensor,
    known: torch.Tensor,
    count: torch.Tensor,
    max_count: int,
    coefficients: Coefficients,
    *,
    z: torch.Tensor | None,
    seeds: torch.Tensor | None,
) -> None:
    """Call the kernel; arguments as `predict_guess_`."""
    tables, held = _cpp.tables(coefficients)
    slot, known, count = _cpp.flat(slot, known, count)
    seeds = None if seeds is None else seeds.contiguous()
    if z is not None:
        z = z.to(x.dtype)
        z = z if z.stride(2) == 1 else z.contiguous()
    _cpp.function("predict_guess", x.dtype)(
        x=_cpp.ring(x),
        x0=_cpp.ring(x0),
        z=_cpp.ring(z),
        seeds=_cpp.address(seeds),
        slot=slot.data_ptr(),
        known=known.data_ptr(),
        count=count.data_ptr(),
        num_windows=slot.shape[0],
        max_count=max_count,
        tables=tables,
        shape=tuple(x.shape),
        max_threads=torch.get_num_threads(),
    )
    del held
