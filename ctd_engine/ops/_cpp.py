"""Arguments of the C++ kernels: addresses, sizes and strides of tensors that the ops have checked.

An address is good as long as its tensor lives: where one may be a copy, its name holds it until the
kernel has run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ctd_engine import _ext

if TYPE_CHECKING:
    from ctd_engine.ops.picard_update import Coefficients

__all__ = ["address", "flat", "function", "ring", "rows", "tables"]

SUFFIXES = {torch.float32: "_float32", torch.float64: "_float64"}


def function(name: str, dtype: torch.dtype) -> Callable[..., None]:
    """The extension's function for states of this type."""
    found: Callable[..., None] = getattr(_ext.load(required=True), name + SUFFIXES[dtype])
    return found


def address(t: torch.Tensor | None) -> int:
    """Where a contiguous tensor lies; 0 for none."""
    if t is None:
        return 0
    if not t.is_contiguous():
        raise ValueError("the kernel needs this tensor contiguous; use flat() first")
    return t.data_ptr()


def flat(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors, those that are not contiguous as copies."""
    return [t if t.is_contiguous() else t.contiguous() for t in tensors]


def ring(t: torch.Tensor | None) -> tuple[int, int, int]:
    """A ring [S, R, D]."""
    if t is None:
        return 0, 0, 0
    stride_slot, stride_node, _ = t.stride()
    return t.data_ptr(), stride_slot, stride_node


def rows(t: torch.Tensor | None, dtype: torch.dtype) -> tuple[tuple[int, int], torch.Tensor | None]:
    """Rows [rows, D] in `dtype` whose elements lie side by side, and the tensor that holds them."""
    if t is None:
        return (0, 0), None
    if t.dtype != dtype:
        t = t.to(dtype)
    stride, inner = t.stride()
    if inner != 1:
        t = t.contiguous()
        stride = t.stride(0)
    return (t.data_ptr(), stride), t


def tables(c: Coefficients) -> tuple[tuple[Any, ...], list[torch.Tensor]]:
    """A solver's numbers, and the tensors that hold them."""
    held = flat(c.A, c.B, c.C, c.G, c.P, c.Q)
    return (*(t.data_ptr() for t in held), *c.A.shape), held
