"""Log-SNRs of a schedule's grid in place of any others, for models that look their time up.

A model with a table of timesteps (`nn.Embedding`) knows the grid's levels and nothing between. The
loss asks at any level; moved to the nearest timestep, z_n and the time would disagree, or, with
z_n moved as well, alpha and beta would be the same timestep wherever zeta adds little noise: no
contrast would be left. Instead every level is moved to one of its two neighbours with chances that
keep the mean. What is estimated is then the integral of the integrand interpolated linearly
between timesteps, with the importance weights as they are: the trapezoidal rule, without bias.

Where beta lies right below alpha, the interpolation's upper end is alpha itself and contributes
exactly 0. So beta always goes to the lower end there, and the draw counts as the fraction of the
way: the same mean, without the noise of the choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ctd_engine.schedules import Schedule

__all__ = ["GridLevels"]


class GridLevels:
    """The finite log-SNRs of a schedule, and how other ones are moved to them.

    Args:
        schedule: of kind "vp".
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        # minus infinity is no level to interpolate with
        self._last = int(torch.isfinite(schedule.logsnrs).sum()) - 1

    def moved(self, logsnr: Tensor, generator: torch.Generator | None) -> Tensor:
        """Each level at random to one of its neighbours, so that its mean stays; same shape."""
        grid, upper = self._cell(logsnr)
        u = torch.rand(logsnr.shape, generator=generator, device=logsnr.device, dtype=torch.float64)
        high, low = grid[upper], grid[upper + 1]
        return torch.where(u * (high - low) < logsnr - low, high, low)

    def moved_below(
        self, logsnr: Tensor, alpha: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Levels below the grid's alpha to the grid, and what share of a draw each stands for."""
        moved = self.moved(logsnr, generator)
        grid, upper = self._cell(logsnr)
        high, low = grid[upper], grid[upper + 1]
        is_first = high == alpha
        share = torch.where(is_first, (high - logsnr) / (high - low), 1.0)
        return torch.where(is_first, low, moved), share.clamp(0.0, 1.0)

    def _cell(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """The grid, and for each level the index of the grid's level at or above it."""
        grid, _ = self.schedule.on(logsnr.device)
        upper = torch.searchsorted(-grid, -logsnr, right=True) - 1
        return grid, upper.clamp(0, self._last - 1)
