"""The Gaussian base of a likelihood: its density and its exact noise prediction."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ctd_engine._rows import per_row


class GaussianBase:
    """A Gaussian with independent elements, on the space of the samples x.

    Args:
        mean: a number, or a tensor that broadcasts against a sample.
        variance: likewise.
        x: samples, `[K, *shape]`, whose shape, dtype and device count.

    Raises:
        ValueError: if one does not broadcast, or the variance is not positive.
    """

    def __init__(self, mean: float | Tensor, variance: float | Tensor, x: Tensor) -> None:
        self.mean = _like_sample(mean, x, "mean")
        self.variance = _like_sample(variance, x, "variance")
        if not bool((self.variance > 0).all()):  # sync: bad input would give silent NaN
            raise ValueError("variance must be positive in every element")

    def log_density(self, x: Tensor) -> Tensor:
        """Log density of samples, `[K]`, fp64."""
        variance = self.variance.to(torch.float64)
        square = (x.to(torch.float64) - self.mean) ** 2 / variance
        return -0.5 * (square + torch.log(2.0 * math.pi * variance)).flatten(1).sum(1)

    def noise(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """E[eps | z] at rows z, `[R, *shape]`, of the variance-preserving path."""
        signal = per_row(torch.sigmoid(logsnr).sqrt(), z)
        noise = per_row(torch.sigmoid(-logsnr).sqrt(), z)
        return noise * (z - signal * self.mean) / (signal**2 * self.variance + noise**2)


def _like_sample(value: float | Tensor, x: Tensor, name: str) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    tensor = torch.as_tensor(value, dtype=dtype, device=x.device)
    try:
        return tensor.expand(x.shape[1:])
    except RuntimeError:
        raise ValueError(
            f"{name} must be a number or broadcast against a sample of shape "
            f"{tuple(x.shape[1:])}, got {tuple(tensor.shape)}"
        ) from None
