"""Densities and errors of a model: log ratio, likelihood, noise level, denoising, score."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ctd_engine._calibration import Calibration, calibration_curve
from ctd_engine._error_maps import ScoreErrors, denoising_errors, score_error_map
from ctd_engine._moments import Estimate
from ctd_engine._noise_classifier import NoiseClassifier, NoisePrediction
from ctd_engine._rows import Model
from ctd_engine.logsnr_distributions import LogSNRDistribution

if TYPE_CHECKING:
    from ctd_engine.schedules import Schedule

__all__ = [
    "Calibration",
    "Estimate",
    "NoiseClassifier",
    "NoisePrediction",
    "ScoreErrors",
    "bits_per_dimension",
    "calibration_curve",
    "denoising_errors",
    "log_likelihood",
    "score_error_map",
]


def log_likelihood(
    model: Model,
    x: Tensor,
    schedule: Schedule,
    *,
    prediction: str = "epsilon",
    time: str | None = None,
    alpha: LogSNRDistribution | None = None,
    num_draws: int = 256,
    max_rows: int = 1024,
    sigma_data: float = 0.5,
    mean: float | Tensor = 0.0,
    variance: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Estimate:
    """Estimate log p(x) in nats: `NoiseClassifier.log_likelihood` as one call.

    Args:
        model: `model(x_t, t, **cond)`, returning the shape of x_t.
        x: points, `[K, *shape]`.
        schedule: the noise schedule the model was trained on.
        prediction: what the model returns.
        time: what the model is told.
        alpha: distribution of the log-SNR.
        num_draws: draws of log-SNR and noise per point.
        max_rows: most rows per model call.
        sigma_data: standard deviation of the data, for "edm" only.
        mean: mean of the Gaussian base term.
        variance: variance of the Gaussian base term.
        generator: source of all random numbers; None uses PyTorch's global one.
        **cond: conditioning, one entry per point.

    Returns:
        Values and standard errors, `[K]`.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: as `NoiseClassifier` and its method.
    """
    classifier = NoiseClassifier(
        model,
        schedule,
        prediction=prediction,
        time=time,
        alpha=alpha,
        num_draws=num_draws,
        max_rows=max_rows,
        sigma_data=sigma_data,
    )
    return classifier.log_likelihood(x, mean=mean, variance=variance, generator=generator, **cond)


def bits_per_dimension(
    log_likelihood: Tensor, num_dimensions: int, *, bin_width: float = 1.0
) -> Tensor:
    """Bits per dimension from a log density in nats.

    Args:
        log_likelihood: log p(x), any shape.
        num_dimensions: D, elements of a sample.
        bin_width: width of a quantisation bin in the units of x: 2 / 255 for 8-bit images scaled
            to [-1, 1], which turns the density into the usual probability of integers.

    Returns:
        Values of the shape of `log_likelihood`.

    Raises:
        ValueError: if `num_dimensions` or `bin_width` is not positive.
    """
    if num_dimensions < 1:
        raise ValueError(f"num_dimensions must be at least 1, got {num_dimensions}")
    if not bin_width > 0:
        raise ValueError(f"bin_width must be positive, got {bin_width}")
    return -log_likelihood / (num_dimensions * math.log(2.0)) - math.log2(bin_width)
