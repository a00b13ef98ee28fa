"""Distributions over the log-SNR, drawn by inversion and with their exact density.

Every noise level in this package is a log-SNR, logsnr = 2 log(alpha / sigma). EDM's log-normal
sigma is a normal distribution of it, flow matching's logit-normal t too (logsnr = -2 logit(t)),
and a uniform t is a logistic distribution of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

__all__ = [
    "LogSNRDistribution",
    "TruncatedLogistic",
    "TruncatedNormal",
    "Uniform",
    "alpha_from_data",
    "logistic_from_data",
    "zeta_from_data",
]

_Self = TypeVar("_Self", bound="LogSNRDistribution")


@dataclass(frozen=True)
class LogSNRDistribution(ABC):
    """A location-scale family, cut at `clip` scales on both sides and at `low` and `high`.

    Raises:
        ValueError: a number is out of range, or nothing is left between the cuts.
    """

    loc: float
    scale: float
    clip: float = math.inf
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not math.isfinite(self.loc):
            raise ValueError(f"loc must be finite, got {self.loc}")
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale must be positive and finite, got {self.scale}")
        if not self.clip > 0:
            raise ValueError(f"clip must be positive (a number of scales), got {self.clip}")
        low, high = self.support
        if not low < high:
            raise ValueError(
                f"the log-SNR distribution is empty: loc {self.loc}, scale {self.scale} and clip "
                f"{self.clip} leave nothing between low = {self.low} and high = {self.high}; "
                "choose loc and clip so that they reach into that range"
            )
        if not self._mass[1] > self._mass[0]:
            raise ValueError(
                f"the log-SNR distribution has no mass between {low} and {high}: loc {self.loc} "
                f"is too many scales ({self.scale}) away"
            )

    @property
    def support(self) -> tuple[float, float]:
        """Smallest and largest log-SNR that can be drawn."""
        reach = self.clip * self.scale
        return max(self.low, self.loc - reach), min(self.high, self.loc + reach)

    def truncated(self: _Self, low: float, high: float) -> _Self:
        """The same distribution, restricted to [low, high] as well."""
        return replace(self, low=max(self.low, low), high=min(self.high, high))

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draw log-SNRs of the given shape, in fp64."""
        u = torch.rand(tuple(shape), generator=generator, device=device, dtype=torch.float64)
        first, last = self._mass
        low, high = self.support
        # u = 0 is the only draw that an unbounded distribution would send to infinity
        u = (first + (last - first) * u).clamp_min(torch.finfo(torch.float64).tiny)
        return (self.loc + self.scale * self._icdf(u)).clamp(low, high)

    def density(self, logsnr: Tensor) -> Tensor:
        """Probability density at `logsnr`, zero outside the support."""
        first, last = self._mass
        low, high = self.support
        density = self._pdf((logsnr - self.loc) / self.scale) / (self.scale * (last - first))
        return torch.where((logsnr >= low) & (logsnr <= high), density, 0.0)

    @cached_property
    def _mass(self) -> tuple[float, float]:
        ends = torch.tensor(self.support, dtype=torch.float64)
        first, last = self._cdf((ends - self.loc) / self.scale).tolist()
        return first, last

    @abstractmethod
    def _cdf(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _icdf(self, u: Tensor) -> Tensor: ...

    @abstractmethod
    def _pdf(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class TruncatedLogistic(LogSNRDistribution):
    """Logistic distribution, cut at `clip` scales: the paper's choice for alpha and zeta."""

    clip: float = 3.0

    def _cdf(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def _icdf(self, u: Tensor) -> Tensor:
        return torch.logit(u)

    def _pdf(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * torch.sigmoid(-x)


@dataclass(frozen=True)
class TruncatedNormal(LogSNRDistribution):
    """Normal distribution: EDM's log-normal sigma, flow matching's logit-normal t."""

    def _cdf(self, x: Tensor) -> Tensor:
        share: Tensor = torch.special.ndtr(x)
        return share

    def _icdf(self, u: Tensor) -> Tensor:
        quantile: Tensor = torch.special.ndtri(u)
        return quantile

    def _pdf(self, x: Tensor) -> Tensor:
        return torch.exp(-0.5 * x**2) / math.sqrt(2.0 * math.pi)


class Uniform(LogSNRDistribution):
    """Uniform on [low, high].

    Raises:
        ValueError: low is not below high, or one is not finite.
    """

    def __init__(self, low: float, high: float) -> None:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"low must be below high, both finite, got low = {low}, high = {high}")
        super().__init__(loc=low, scale=high - low, clip=math.inf, low=low, high=high)

    def truncated(self, low: float, high: float) -> Uniform:
        """The uniform distribution on the part of [low, high] it covers."""
        if not max(self.low, low) < min(self.high, high):
            raise ValueError(
                f"the log-SNR distribution is empty: uniform on [{self.low}, {self.high}] has "
                f"nothing between {low} and {high}"
            )
        return Uniform(max(self.low, low), min(self.high, high))

    def _cdf(self, x: Tensor) -> Tensor:
        return x.clamp(0.0, 1.0)

    def _icdf(self, u: Tensor) -> Tensor:
        return u

    def _pdf(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


def alpha_from_data(data: Tensor, *, clip: float = 4.0) -> TruncatedLogistic:
    """The logistic whose mean and variance suit the data's covariance spectrum.

    A Gaussian direction of variance v contributes a logistic of location -log(v) and scale 1 to
    the likelihood integral over the log-SNR. This matches mean and variance of their mixture.

    Args:
        data: samples, `[num_samples, *shape]`, at least two.
        clip: number of scales at which the logistic is cut.

    Returns:
        The distribution to pass as `alpha`.

    Raises:
        ValueError: if there are fewer than two samples, they do not vary or are not finite.
    """
    logs = _variances(data).log()
    spread = float(logs.var(unbiased=False)) * 3.0 / math.pi**2
    return TruncatedLogistic(-float(logs.mean()), math.sqrt(1.0 + spread), clip=clip)


# the name of `alpha_from_data` before there was one for zeta
logistic_from_data = alpha_from_data

# noise that costs this many nats in all is hardly to be seen, and this many per direction is so
# coarse that more of it cost more on the training path than it gained off it, in trials with points
_LEAST_NATS = 0.01
_MOST_NATS_PER_DIRECTION = 1.5


def zeta_from_data(data: Tensor) -> Uniform:
    """Log-SNRs of noise over the data's own range: from coarse to hardly to be seen. For points.

    Noise of log-SNR zeta widens Gaussian data of variances v by

        S(zeta) = 1/2 sum_d log(1 + exp(-zeta) / v_d)   nats.

    The distribution is uniform from where S is 1.5 nats per direction (noise of 4.4 times the
    data's standard deviation) to where it is 0.01 nats in all: [-2.9, 4.6] for points in the plane
    of unit variance, and all of it lower by log(v) for variance v. Images are better off with the
    default zeta, the paper's: such coarse noise on so many elements is told at once.

    Args:
        data: samples, `[num_samples, *shape]`, at least two.

    Returns:
        The distribution to pass as `zeta`.

    Raises:
        ValueError: if there are fewer than two samples, they do not vary or are not finite.
    """
    precisions = 1.0 / _variances(data)
    return Uniform(
        _where_noise_costs(precisions, _MOST_NATS_PER_DIRECTION * len(precisions)),
        _where_noise_costs(precisions, _LEAST_NATS),
    )


def _where_noise_costs(precisions: Tensor, nats: float) -> float:
    """The log-SNR zeta at which 1/2 sum log(1 + exp(-zeta) precision) is so many nats."""
    # between the answers if all directions were like the widest, and like the narrowest
    per_direction = math.log(math.expm1(2.0 * nats / len(precisions)))
    low, high = (float(precisions.log().aminmax()[i]) - per_direction for i in (0, 1))
    for _ in range(60):
        middle = 0.5 * (low + high)
        cost = 0.5 * float(torch.log1p(math.exp(-middle) * precisions).sum())
        low, high = (middle, high) if cost > nats else (low, middle)
    return 0.5 * (low + high)


def _variances(data: Tensor) -> Tensor:
    """Variances of the data along its own axes, fp64, without those that are numerically 0."""
    if data.dim() < 2 or data.shape[0] < 2:
        raise ValueError(
            f"data must have shape [num_samples >= 2, *shape], got {tuple(data.shape)}"
        )
    flat = data.detach().flatten(1).to("cpu", torch.float64)
    if not bool(flat.isfinite().all()):
        raise ValueError("data must be finite, got NaN or infinity; leave such samples out")
    centred = flat - flat.mean(0)
    # the smaller of the two products has the same eigenvalues
    product = centred.T @ centred if len(flat) > flat.shape[1] else centred @ centred.T
    variances: Tensor = torch.linalg.eigvalsh(product) / len(flat)
    # directions without variance would put the location at infinity
    variances = variances[variances > 1e-6 * variances.max()]
    if len(variances) == 0:
        raise ValueError("data must vary between samples, got identical samples")
    return variances
