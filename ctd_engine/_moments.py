"""Mean and standard error of draws that arrive in chunks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """Mean of independent draws and its standard error, fp64; of log densities in nats."""

    value: Tensor
    standard_error: Tensor


class Moments:
    """Sums of the draws and of their squares, per point; points come in slices, in order."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}

    def add(self, points: slice, values: Tensor) -> None:
        """Add draws, `[K, Z, n]`."""
        values = values.to(torch.float64)
        sums = torch.stack([values.sum(-1), values.square().sum(-1)])
        known = self._sums.get(points.start)
        self._sums[points.start] = sums if known is None else known + sums

    def result(self, num_draws: int) -> tuple[Tensor, Tensor]:
        """Means and standard errors, `[K, Z]`."""
        total, square = torch.cat([self._sums[first] for first in sorted(self._sums)], 1)
        value = total / num_draws
        variance = (square / num_draws - value**2).clamp_min(0.0)
        return value, torch.sqrt(variance / (num_draws - 1))
