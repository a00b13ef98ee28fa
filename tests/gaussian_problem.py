"""Gaussian data, its exact denoiser in every parametrisation, and its closed-form densities."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ctd_engine._contrast import Contrast
from ctd_engine.parametrization import data_coefficients, target_coefficients
from ctd_engine.schedules import Schedule, from_alphas_cumprod

SIGMA_DATA = 0.7


def wide_schedule() -> Schedule:
    """Variance preserving, log-SNR from 22 to -22: cuts nothing off the likelihood integral."""
    logsnrs = torch.linspace(22.0, -22.0, 1001, dtype=torch.float64)
    return from_alphas_cumprod(torch.sigmoid(logsnrs))


class GaussianProblem:
    """Correlated Gaussian data of a given dimension."""

    def __init__(self, num_dimensions: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (num_dimensions, num_dimensions)
        basis, _ = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64))
        self.generator = generator
        self.basis = basis
        self.variances = torch.logspace(-0.7, 0.3, num_dimensions, dtype=torch.float64)
        self.mean = 0.5 * torch.randn(num_dimensions, generator=generator, dtype=torch.float64)

    def sample(self, num_samples: int, zeta: float | None = None) -> Tensor:
        """Points of p, or of p_zeta."""
        shape = (num_samples, len(self.mean))
        noise = torch.randn(2, *shape, generator=self.generator, dtype=torch.float64)
        x = self.mean + (noise[0] * self.variances.sqrt()) @ self.basis.T
        if zeta is None:
            return x
        signal = torch.sigmoid(torch.tensor(zeta, dtype=torch.float64))
        return signal.sqrt() * x + (1.0 - signal).sqrt() * noise[1]

    def log_density(self, z: Tensor, zeta: float | Tensor | None = None) -> Tensor:
        """Log density of p, or of p_zeta, at points of any leading shape."""
        signal = torch.ones(1, dtype=torch.float64)
        if zeta is not None:
            signal = torch.sigmoid(torch.as_tensor(zeta, dtype=torch.float64)).reshape(-1, 1)
        variances = signal * self.variances + (1.0 - signal)
        white = (z - signal.sqrt() * self.mean) @ self.basis
        return -0.5 * (white**2 / variances + torch.log(2 * torch.pi * variances)).sum(-1)

    def log_ratio(self, z: Tensor, zeta: float | Tensor) -> Tensor:
        """Closed form of delta."""
        return self.log_density(z, zeta) - self.log_density(z)

    def minimum(self, prediction: str, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Smallest mean squared error per element of a prediction's target, per noise level."""
        p, q = target_coefficients(prediction, alpha, sigma, SIGMA_DATA)
        alpha, sigma = alpha[..., None], sigma[..., None]
        # eps - eps_hat = -(alpha / sigma) (x0 - x0_hat), and alpha^2 v + sigma^2 is the marginal
        variance = self.variances / (alpha**2 * self.variances + sigma**2)
        return ((p[..., None] * sigma - q[..., None] * alpha) ** 2 * variance).mean(-1)


class ExactModel:
    """The exact denoiser as a model that is told the log-SNR, and counts its calls."""

    def __init__(self, problem: GaussianProblem, schedule: Schedule, prediction: str) -> None:
        self.problem = problem
        self.schedule = schedule
        self.prediction = prediction
        self.rows: list[int] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.rows.append(len(x))
        problem, shape = self.problem, x.shape
        alpha, sigma = self.schedule.alpha_sigma(t)
        *_, scale = data_coefficients(self.prediction, alpha, sigma, SIGMA_DATA)
        p, q = target_coefficients(self.prediction, alpha, sigma, SIGMA_DATA)
        alpha, sigma, scale, p, q = (v.reshape(-1, 1) for v in (alpha, sigma, scale, p, q))
        white = (x.flatten(1) / scale - alpha * problem.mean) @ problem.basis
        white = white / (alpha**2 * problem.variances + sigma**2)
        eps = sigma * white @ problem.basis.T
        x0 = problem.mean + alpha * (problem.variances * white) @ problem.basis.T
        return (p * x0 + q * eps).view(shape)


def contrast_points(
    contrast: Contrast,
    model: Callable[[Tensor, Tensor], Tensor],
    z: Tensor,
    zeta: Tensor,
    y: Tensor,
    num_draws: int,
    generator: torch.Generator,
    *,
    common_random_numbers: bool = True,
    alpha_given_zeta: bool = False,
) -> tuple[Tensor, Tensor]:
    """Loss and delta of points, with one model call for them alone."""
    pairs = contrast.pairs(
        z,
        zeta,
        num_draws,
        generator,
        common_random_numbers=common_random_numbers,
        alpha_given_zeta=alpha_given_zeta,
    )
    return contrast.reduce(pairs, model(pairs.query.input, pairs.query.time), y)
