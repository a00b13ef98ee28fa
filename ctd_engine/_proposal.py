"""Importance sampling of alpha given zeta for the log ratio with common random numbers.

A draw at alpha adds w(alpha) g / 2 to delta, g the difference of the two squared errors, and its
mean square is least for a density of alpha proportional to sqrt(E[g² | alpha, zeta]). Measured for
Gaussian data with the exact denoiser, that curve has one peak: below it, it grows like e^(1.5
alpha), where noise hides the difference between p and p_zeta; above, it falls like e^(-alpha / 2),
where both are smooth on the scale of the noise. The peak lies near zeta, but not below the middle
of the data's precisions (points of p) nor above the largest of them. docs/training.md has the gain.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctd_engine.logsnr_distributions import LogSNRDistribution

__all__ = ["GivenZeta"]

# a logistic between the slopes of the two sides, 1.5 and -1/2
PEAK_SCALE = 1.5
# how far above alpha's location the peak follows zeta, in alpha's scales: 2.3 gained more where
# alpha fits the data's spectrum and lost where it is only a guess
PEAK_REACH = 1.5


class GivenZeta:
    """Half of the draws from a distribution of alpha, half from a logistic around its peak.

    density(alpha | zeta) = (base(alpha) + peak(alpha - center(zeta))) / 2

    with center(zeta) = zeta + 1, kept between the base's location and 1.5 of its scales above. The
    half that stays with the base bounds every weight by twice the base's: the mean square of a draw
    is at most doubled where the peak is misplaced.

    Args:
        base: distribution of alpha; its support is the support.
    """

    def __init__(self, base: LogSNRDistribution) -> None:
        self.base = base
        low, high = base.support
        self.highest = min(max(base.loc + PEAK_REACH * base.scale, low), high)
        self.lowest = min(max(base.loc, low), high)

    def center(self, zeta: Tensor) -> Tensor:
        """Location of the peak at log-SNRs zeta, in their shape."""
        return (zeta + 1.0).clamp(self.lowest, self.highest)

    def sample(
        self, zeta: Tensor, num_draws: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Draw alpha for every zeta `[K]`: values and their densities, `[K, n]`, fp64."""
        shape = (len(zeta), num_draws)
        base = self.base.sample(shape, generator=generator, device=zeta.device)
        u = torch.rand(2, *shape, generator=generator, device=zeta.device, dtype=torch.float64)
        center, first, mass = self._peak(zeta)
        inside = torch.addcmul(first, u[0], mass).clamp_min(torch.finfo(torch.float64).tiny)
        peak = torch.add(center, torch.logit(inside), alpha=PEAK_SCALE).clamp(*self.base.support)
        alpha = torch.where(u[1] < 0.5, base, peak)
        return alpha, self._density(alpha, center, mass)

    def density(self, alpha: Tensor, zeta: Tensor) -> Tensor:
        """Probability density at alpha `[K, n]` given zeta `[K]`, zero outside the support."""
        center, _, mass = self._peak(zeta)
        low, high = self.base.support
        return torch.where(
            (alpha >= low) & (alpha <= high), self._density(alpha, center, mass), 0.0
        )

    def _density(self, alpha: Tensor, center: Tensor, mass: Tensor) -> Tensor:
        above = torch.sigmoid((alpha - center) / PEAK_SCALE)
        return 0.5 * (self.base.density(alpha) + above * (1.0 - above) / (PEAK_SCALE * mass))

    def _peak(self, zeta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Center, lower end of the cumulative share and mass inside the support, `[K, 1]`."""
        center = self.center(zeta)[:, None]
        low, high = self.base.support
        first = torch.sigmoid((low - center) / PEAK_SCALE)
        return center, first, torch.sigmoid((high - center) / PEAK_SCALE) - first
