"""Distributions in one and two dimensions, with their densities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SHAPES", "Checkerboard", "Distribution", "Mixture", "get_shape", "two_gaussians"]

# the thickness of a line, where the shapes have a standard deviation of 1
LINE_STD = 0.03
_LINE_POINTS = 800


@dataclass(frozen=True, eq=False)
class Mixture:
    """An even mixture of normal distributions N(mean_k, std² I), means [M, D] float64."""

    means: Tensor
    std: float

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw [count, D], float32."""
        index = torch.randint(len(self.means), (count,), generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return (self.means[index] + self.std * noise).float()

    def noised(self, logsnr: float) -> Mixture:
        """The distribution of sqrt(sigmoid(logsnr)) x + sqrt(sigmoid(-logsnr)) eps."""
        signal, noise = 1.0 / (1.0 + math.exp(-logsnr)), 1.0 / (1.0 + math.exp(logsnr))
        return Mixture(signal**0.5 * self.means, (signal * self.std**2 + noise) ** 0.5)

    def log_density(self, x: Tensor) -> Tensor:
        """Log density at x [R, D] -> [R], float64."""
        distance = torch.cdist(x.double(), self.means, compute_mode="donot_use_mm_for_euclid_dist")
        terms = -0.5 * (distance / self.std).square()
        norm = math.log(len(self.means)) + self.means.shape[1] * math.log(
            self.std * math.sqrt(2.0 * math.pi)
        )
        return torch.logsumexp(terms, dim=1) - norm


@dataclass(frozen=True, eq=False)
class Checkerboard:
    """Uniform on the eight dark fields of a board of 4 by 4, standard deviation 1 on each axis."""

    # a uniform distribution over an edge of 2 sqrt(3) has variance 1
    field: float = math.sqrt(3.0) / 2.0

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw [count, 2], float32."""
        column = torch.randint(4, (count,), generator=generator)
        row = 2 * torch.randint(2, (count,), generator=generator) + column % 2
        place = torch.rand(count, 2, generator=generator, dtype=torch.float64)
        return ((torch.stack([column, row], dim=1) + place - 2.0) * self.field).float()

    def log_density(self, x: Tensor) -> Tensor:
        """Log density at x [R, 2] -> [R], float64; -inf on light fields and beside the board."""
        place = (x.double() / self.field + 2.0).floor()
        is_dark = ((place >= 0) & (place < 4)).all(1) & (place.sum(1) % 2 == 0)
        inside = torch.full(is_dark.shape, -math.log(8.0 * self.field**2), dtype=torch.float64)
        return torch.where(is_dark, inside, -math.inf)


Distribution = Mixture | Checkerboard


def two_gaussians() -> Mixture:
    """The paper's example in one dimension: modes of standard deviation 1 at -5 and 5."""
    return Mixture(torch.tensor([[-5.0], [5.0]], dtype=torch.float64), 1.0)


def _two_spirals() -> Mixture:
    angle = torch.linspace(1.0, 3.0 * math.pi, 400, dtype=torch.float64)
    arm = torch.stack([angle * angle.cos(), angle * angle.sin()], dim=1)
    return _lines([arm, -arm])


def _moons() -> Mixture:
    angle = torch.linspace(0.0, math.pi, 200, dtype=torch.float64)
    upper = torch.stack([angle.cos(), angle.sin()], dim=1)
    return _lines([upper, torch.tensor([1.0, 0.5], dtype=torch.float64) - upper])


def _eight_gaussians() -> Mixture:
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4.0)
    return _normalised(torch.stack([angle.cos(), angle.sin()], dim=1), 0.1)


def _boat() -> Mixture:
    """A sailing boat on two waves under a sun: corners, curves, closed and open lines."""
    hull = [(-3.0, 0.0), (3.2, 0.0), (2.2, -1.2), (-2.2, -1.2), (-3.0, 0.0)]
    mast = [(0.0, 0.0), (0.0, 5.0)]
    main_sail = [(0.0, 4.8), (2.8, 0.8), (0.0, 0.8)]
    fore_sail = [(0.0, 4.2), (-2.4, 0.8), (0.0, 0.8)]
    turn = torch.linspace(0.0, 2.0 * math.pi, 60, dtype=torch.float64)
    sun = torch.stack([3.4 + 0.8 * turn.cos(), 4.0 + 0.8 * turn.sin()], dim=1)
    x = torch.linspace(-4.0, 4.0, 200, dtype=torch.float64)
    waves = [torch.stack([x, y + 0.25 * (2.5 * x).sin()], dim=1) for y in (-1.8, -2.6)]
    straight = [
        torch.tensor(line, dtype=torch.float64) for line in (hull, mast, main_sail, fore_sail)
    ]
    return _lines([*straight, sun, *waves])


SHAPES: dict[str, Callable[[], Distribution]] = {
    "spirals": _two_spirals,
    "moons": _moons,
    "checkerboard": Checkerboard,
    "eight_gaussians": _eight_gaussians,
    "boat": _boat,
}


def get_shape(name: str) -> Distribution:
    """The distribution of a name in `SHAPES`, of mean 0 and standard deviation 1."""
    if name not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {name!r}")
    return SHAPES[name]()


def _lines(lines: Sequence[Tensor]) -> Mixture:
    """Normal distributions strung along lines, each a polygon [P, 2], evenly by length."""
    lengths = torch.stack([line.diff(dim=0).norm(dim=1).sum() for line in lines])
    counts = (_LINE_POINTS * lengths / lengths.sum()).round().long().tolist()
    points = [_evenly(line, count) for line, count in zip(lines, counts, strict=True)]
    return _normalised(torch.cat(points), None)


def _evenly(line: Tensor, count: int) -> Tensor:
    """Points [count, 2] at equal distances along a polygon [P, 2]."""
    walked = torch.cat([torch.zeros(1, dtype=line.dtype), line.diff(dim=0).norm(dim=1).cumsum(0)])
    # half a distance off the ends, so that a closed line has no point twice
    at = (torch.arange(count, dtype=line.dtype) + 0.5) / count * walked[-1]
    right = torch.searchsorted(walked, at).clamp(1, len(line) - 1)
    share = (at - walked[right - 1]) / (walked[right] - walked[right - 1])
    return torch.lerp(line[right - 1], line[right], share[:, None])


def _normalised(points: Tensor, std: float | None) -> Mixture:
    """Centred and scaled so that the variance of the mixture is 1 on average over the axes.

    `std` is in the unit of the points and scales with them; None is `LINE_STD` in the new unit.
    """
    centred = points - points.mean(0)
    variance = float(centred.square().mean())
    if std is None:
        return Mixture(centred * math.sqrt((1.0 - LINE_STD**2) / variance), LINE_STD)
    scale = 1.0 / math.sqrt(variance + std**2)
    return Mixture(centred * scale, std * scale)
