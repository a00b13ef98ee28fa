"""Window points that have no row of the model's batch: their x0 lies between those that have one.

A smooth model changes little from node to node, so that far from the final points, where all of
the window will be evaluated again, every `far_stride`-th point tells what the others need.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ctd_engine._windows import to_tensors
from ctd_engine.scheduling import RoundPlan

__all__ = ["NEAR", "FarPoints", "far_points"]

# a point is about to be accepted, and has a row of its own, if it moved less than so many times
# what it is accepted with: an iteration brings most points ten times closer (`docs/methods.md`)
NEAR = 10.0


@dataclass(frozen=True)
class FarPoints:
    """Where the model was asked, and between which of these rows every window point lies.

    slot, node: int64 [rows]. left, right: int64 [points], rows of one window; weight [points, 1],
    the share of the right one.
    """

    slot: torch.Tensor
    node: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    weight: torch.Tensor

    def between(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [rows, D] as points [points, D], linear in the node."""
        return torch.lerp(rows[self.left], rows[self.right], self.weight)


def far_points(plan: RoundPlan, dtype: torch.dtype, device: torch.device) -> FarPoints | None:
    """How a round's points lie between its rows; None where every point has a row."""
    num_points = int(plan.length.sum())
    if len(plan.row_node) == num_points:
        return None
    first = plan.length.cumsum() - plan.length
    # every window's last point has a row, so that none lies between two windows
    at = first[plan.row_entry] + plan.row_offset
    points = np.arange(num_points)
    left = np.searchsorted(at, points, side="right") - 1
    # a point with a row of its own reads no other: that may be NaN, or another sample's
    right = left + (points > at[left])
    gap = np.maximum(at[right] - at[left], 1)
    columns = (plan.row_slot, plan.row_node, left, right, (points - at[left]) / gap)
    slot, node, lower, upper, weight = to_tensors(columns, device)
    return FarPoints(slot, node, lower, upper, weight.to(dtype)[:, None])
