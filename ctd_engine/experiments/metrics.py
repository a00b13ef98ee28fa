"""Two-sample statistics, and the class of the nearest image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["BANDWIDTH", "TwoSample", "energy_distance", "mmd", "nearest_class"]

# the paper's; a squared length, so that the kernel's standard deviation is 0.17
BANDWIDTH = 3e-2
_CHUNK = 512


class TwoSample:
    """Statistics of samples against one reference, whose own part is computed once.

    Both are 2 E k(x, y) - E k(x, x') - E k(y, y'), up to the sign, over pairs of different points:
    without bias, so that they may be negative.

    Args:
        reference: y, [m, *shape], m >= 2.
    """

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference.flatten(1)
        self._own: dict[float | None, float] = {}

    def mmd(self, samples: Tensor, bandwidth: float = BANDWIDTH) -> float:
        """Squared maximum mean discrepancy (Gretton et al. 2012, eq. 3).

        With the kernel of the code published with arXiv 2407.08946, a density in the distance:
        k(x, y) = exp(-|x - y|² / (2 bandwidth)) / sqrt(2 pi bandwidth).

        Args:
            samples: x, [n, *shape], n >= 2.
            bandwidth: of the kernel, a squared length.

        Raises:
            ValueError: fewer than two points, or other shapes.
        """
        return self._discrepancy(samples, bandwidth) / math.sqrt(2.0 * math.pi * bandwidth)

    def energy_distance(self, samples: Tensor) -> float:
        """2 E|x - y| - E|x - x'| - E|y - y'| (Szekely and Rizzo 2013), in the data's unit.

        scipy's `energy_distance` is the root of the form with bias.

        Args:
            samples: x, [n, *shape], n >= 2.

        Raises:
            ValueError: fewer than two points, or other shapes.
        """
        return -self._discrepancy(samples, None)

    def _discrepancy(self, samples: Tensor, bandwidth: float | None) -> float:
        x, y = samples.flatten(1), self.reference
        if x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
            raise ValueError(
                "samples and reference must hold at least two points of one shape, got "
                f"{tuple(samples.shape)} and {tuple(y.shape)}, flattened"
            )
        if bandwidth not in self._own:
            self._own[bandwidth] = _mean(y, y, bandwidth, True)
        own = self._own[bandwidth]
        return _mean(x, x, bandwidth, True) + own - 2.0 * _mean(x, y, bandwidth, False)


def mmd(x: Tensor, y: Tensor, bandwidth: float = BANDWIDTH) -> float:
    """See `TwoSample.mmd`."""
    return TwoSample(y).mmd(x, bandwidth)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """See `TwoSample.energy_distance`."""
    return TwoSample(y).energy_distance(x)


def nearest_class(samples: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """The label of every sample's nearest image (Euclidean): samples [n, *shape] -> [n].

    Args:
        samples: [n, *shape].
        images: what to compare with, [m, *shape].
        labels: of the images, [m].
    """
    rows, flat = samples.flatten(1), images.flatten(1)
    nearest = [torch.cdist(part, flat).argmin(1) for part in torch.split(rows, _CHUNK)]
    return labels[torch.cat(nearest)]


def _mean(x: Tensor, y: Tensor, bandwidth: float | None, is_same: bool) -> float:
    """Mean of the kernel, or of the distance without a bandwidth, over pairs."""
    total = 0.0
    for first in range(0, len(x), _CHUNK):
        part = x[first : first + _CHUNK]
        # by differences: the other way loses the digits of near points
        values = torch.cdist(part, y, compute_mode="donot_use_mm_for_euclid_dist")
        if bandwidth is not None:
            values = values.square_().mul_(-0.5 / bandwidth).exp_()
        total += float(values.sum(dtype=torch.float64))
        if is_same:
            # a point and itself are no pair
            total -= float(values.diagonal(first).sum(dtype=torch.float64))
    return total / (len(x) * (len(y) - 1 if is_same else len(y)))
