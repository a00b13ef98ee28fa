"""A round's plan, made of NumPy's numbers, as tensors on the sampler's device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from ctd_engine.ops.picard_update import Windows
from ctd_engine.scheduling import RoundPlan
from ctd_engine.scheduling.plan import IntArray

__all__ = ["to_tensors", "to_windows"]


def to_tensors(columns: Iterable[np.ndarray[Any, Any]], device: torch.device) -> list[torch.Tensor]:
    """A round's numbers on the sampler's device; on the CPU without a copy."""
    tensors = [torch.from_numpy(values) for values in columns]
    return tensors if device.type == "cpu" else [t.to(device) for t in tensors]


def to_windows(plan: RoundPlan, device: torch.device) -> Windows:
    """The round's windows, with every point of each, as tensors on the sampler's device."""
    names = ("slot", "start", "length", "known")
    by_point = ("row_slot", "row_node", "row_entry", "row_offset")
    first = plan.length.cumsum() - plan.length
    columns = [*(getattr(plan, name) for name in names), *_points(plan, first), first]
    tensors = to_tensors(columns, device)
    max_length = int(plan.length.max())
    return Windows(
        **dict(zip((*names, *by_point, "first_row"), tensors, strict=True)), max_length=max_length
    )


def _points(plan: RoundPlan, first: IntArray) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    # slot, node, entry and offset of every point
    if len(plan.row_node) == plan.length.sum():
        return plan.row_slot, plan.row_node, plan.row_entry, plan.row_offset
    entry = np.repeat(np.arange(len(plan.length)), plan.length)
    offset = np.arange(len(entry)) - first[entry]
    return plan.slot[entry], plan.start[entry] + offset, entry, offset
