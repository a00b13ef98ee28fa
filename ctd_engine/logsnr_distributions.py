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
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ctd_engine.schedules import Schedule

__all__ = [
    "LogSNRDistribution",
    "TruncatedLogistic",
    "TruncatedNormal",
    "Uniform",
    "logistic_from_data",
    "training_levels",
]

_Self = TypeVar("_Self", bound="LogSNRDistribution")


@dataclass(frozen=True)
class LogSNRDistribution(ABC):
    """A location-scale family, cut at `clip` scales on both sides and at `low` and `high`."""

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
    """Uniform on [low, high]."""

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


def logistic_from_data(data: Tensor, *, clip: float = 4.0) -> TruncatedLogistic:
    """The logistic whose mean and variance suit the data's covariance spectrum.

    A Gaussian direction of variance v contributes a logistic of location -log(v) and scale 1 to
    the likelihood integral over the log-SNR. This matches mean and variance of their mixture.

    Args:
        data: samples, `[num_samples, *shape]`, at least two.
        clip: number of scales at which the logistic is cut.

    Returns:
        The distribution to pass as `alpha`.

    Raises:
        ValueError: if there are fewer than two samples or they do not vary.
    """
    if data.dim() < 2 or data.shape[0] < 2:
        raise ValueError(
            f"data must have shape [num_samples >= 2, *shape], got {tuple(data.shape)}"
        )
    flat = data.detach().flatten(1).to("cpu", torch.float64)
    centred = flat - flat.mean(0)
    variances = torch.linalg.svdvals(centred) ** 2 / flat.shape[0]
    # directions without variance would put the location at infinity
    variances = variances[variances > 1e-6 * variances.max()]
    if len(variances) == 0:
        raise ValueError("data must vary between samples, got identical samples")
    logs = variances.log()
    spread = float(logs.var(unbiased=False)) * 3.0 / math.pi**2
    return TruncatedLogistic(-float(logs.mean()), math.sqrt(1.0 + spread), clip=clip)


_LEVELS: dict[str, LogSNRDistribution | None] = {
    "discrete": None,
    # EDM: log(sigma) normal with mean -1.2 and standard deviation 1.2
    "lognormal": TruncatedNormal(2.4, 2.4),
    # flow matching: logit(t) standard normal, and t uniform
    "logit_normal": TruncatedNormal(0.0, 2.0),
    "uniform": TruncatedLogistic(0.0, 2.0, clip=math.inf),
}
_DEFAULT_LEVELS = {"vp": "discrete", "ve": "lognormal", "flow": "logit_normal"}


def training_levels(
    levels: str | LogSNRDistribution | None, schedule: Schedule
) -> LogSNRDistribution | None:
    """Distribution of the noise level in training, cut to the schedule's range.

    Args:
        levels: "discrete", "lognormal", "logit_normal", "uniform", a distribution, or None for the
            one that is usual for the schedule's kind.
        schedule: the noise schedule.

    Returns:
        The distribution, or None for a uniform index of the schedule's grid ("discrete").

    Raises:
        TypeError: if `levels` is of another type.
        ValueError: if the name is unknown or does not fit the schedule.
    """
    if levels is None:
        levels = _DEFAULT_LEVELS[schedule.kind]
    if isinstance(levels, str):
        if levels not in _LEVELS:
            names = ", ".join(f'"{name}"' for name in _LEVELS)
            raise ValueError(f'levels must be None or one of {names}, got "{levels}"')
        if levels == "discrete" and schedule.kind != "vp":
            raise ValueError(
                'levels "discrete" needs a schedule with discrete timesteps (kind "vp"), got '
                f'schedule "{schedule.name}" of kind "{schedule.kind}"'
            )
        chosen = _LEVELS[levels]
    elif isinstance(levels, LogSNRDistribution):
        chosen = levels
    else:
        raise TypeError(
            f"levels must be a name, a LogSNRDistribution or None, got {type(levels).__name__}"
        )
    return None if chosen is None else chosen.truncated(*schedule.logsnr_range)
