"""A round's plan, made of NumPy's numbers, as tensors on the sampler's device."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ctd_engine.ops.picard_update import Windows
from ctd_engine.scheduling import RoundPlan
from ctd_engine.scheduling.plan import IntArray

__all__ = ["to_tensors", "to_windows"]


def to_tensors(columns: Iterable[IntArray], device: torch.device) -> list[torch.Tensor]:
    """A round's numbers on the sampler's device; on the CPU without a copy."""
    tensors = [torch.from_numpy(values) for values in columns]
    return tensors if device.type == "cpu" else [t.to(device) for t in tensors]


def to_windows(plan: RoundPlan, device: torch.device) -> Windows:
    """The round's decisions as tensors on the sampler's device."""
    by_row = ("row_slot", "row_node", "row_entry", "row_offset")
    names = ("slot", "start", "length", "known", *by_row)
    first_row = plan.length.cumsum() - plan.length
    columns = to_tensors([*(getattr(plan, name) for name in names), first_row], device)
    max_length = int(plan.length.max())
    return Windows(**dict(zip((*names, "first_row"), columns, strict=True)), max_length=max_length)
