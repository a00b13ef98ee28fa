"""Where a model of points in one dimension errs: against the exact score, on and off the path."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ctd_engine import schedules, solvers
from ctd_engine.denoiser import Model
from ctd_engine.exact import MixtureModel
from ctd_engine.experiments.shapes import Mixture
from ctd_engine.likelihood import score_error_map

__all__ = ["OFF_PATH", "AskedErrors", "ErrorMap", "error_map"]

# a point is off the path where the density is below this share of its largest value
OFF_PATH = 1e-3
_REACH, _NUM_POINTS, _NUM_LEVELS = 8.0, 161, 80


@dataclass(frozen=True, eq=False)
class ErrorMap:
    """Errors |eps_hat - eps| at points [G] and log-SNRs [Z], and the density there, [Z, G]."""

    points: Tensor
    logsnrs: Tensor
    error: Tensor
    density: Tensor

    @property
    def is_off_path(self) -> Tensor:
        """[Z, G]."""
        return self.density < OFF_PATH * self.density.amax(1, keepdim=True)

    def summary(self) -> dict[str, float]:
        """Root mean squared errors: over noised data, and even over the points off the path."""
        square, off = self.error.square(), self.is_off_path
        on_path = ((square * self.density).sum(1) / self.density.sum(1)).mean()
        return {
            "on_path": float(on_path.sqrt()),
            "off_path": float(square[off].mean().sqrt()),
        }


def error_map(model: Model, mixture: Mixture) -> ErrorMap:
    """Compare a model of epsilon with the exact one on a grid of points and log-SNRs.

    Args:
        model: trained on the linear-beta schedule.
        mixture: of one dimension.
    """
    schedule = schedules.linear_beta()
    low, high = schedule.logsnr_range
    logsnrs = torch.linspace(low, high, _NUM_LEVELS, dtype=torch.float64)
    points = torch.linspace(-_REACH, _REACH, _NUM_POINTS, dtype=torch.float32)[:, None]
    found = score_error_map(model, _exact(mixture).score, points, schedule, logsnrs)
    density = torch.stack([mixture.noised(v).log_density(points).exp() for v in logsnrs.tolist()])
    return ErrorMap(points[:, 0], logsnrs, found.noise.sqrt(), density)


class AskedErrors:
    """A model that keeps account of what a sampler asks it, and how wrong its answers are.

    Args:
        model: of epsilon, asked at timesteps of the linear-beta schedule.
        mixture: of one dimension.
    """

    def __init__(self, model: Model, mixture: Mixture) -> None:
        self._model, self._mixture, self._exact = model, mixture, _exact(mixture)
        logsnrs = schedules.linear_beta().logsnrs
        self._signal, self._noise = torch.sigmoid(logsnrs), torch.sigmoid(-logsnrs)
        grid = torch.linspace(-_REACH, _REACH, _NUM_POINTS, dtype=torch.float64)
        every = torch.arange(len(logsnrs))
        rows = self._log_density(
            grid.repeat(len(every))[:, None], every.repeat_interleave(_NUM_POINTS)
        )
        self._largest = rows.view(len(every), _NUM_POINTS).amax(1)
        self._square = torch.zeros(2, dtype=torch.float64)
        self._count = torch.zeros(2, dtype=torch.float64)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        out = self._model(x, t)
        square = (out - self._exact(x, t)).double().square().sum(1)
        is_off = self._is_off_path(x.double(), t.round().long())
        for kind, chosen in enumerate((~is_off, is_off)):
            self._square[kind] += square[chosen].sum()
            self._count[kind] += chosen.sum()
        return out

    def _is_off_path(self, x: Tensor, t: Tensor) -> Tensor:
        return self._log_density(x, t) < self._largest[t] + math.log(OFF_PATH)

    def _log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """Of noised data at x [R, 1] and timesteps t [R], up to a constant."""
        means = self._signal[t].sqrt()[:, None] * self._mixture.means[:, 0]
        variance = (self._signal[t] * self._mixture.std**2 + self._noise[t])[:, None]
        terms = -0.5 * ((x - means).square() / variance + torch.log(variance))
        return torch.logsumexp(terms, dim=1)

    def summary(self) -> dict[str, float]:
        """Root mean squared error of all answers, and the share of questions off the path."""
        total = float(self._count.sum())
        return {
            "asked": float((self._square.sum() / total).sqrt()),
            "share_off_path": float(self._count[1]) / total,
        }


def _exact(mixture: Mixture) -> MixtureModel:
    table = solvers.ddpm(schedules.linear_beta(), 1000)
    return MixtureModel(table, mixture.means, mixture.std)
