"""k-diffusion: its samplers parallel in time, and the contrastive loss like `Denoiser.loss`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctd_engine._rows import Model, check_batch
from ctd_engine.integrations._denoiser import denoiser_loss, errors
from ctd_engine.integrations._k_sampling import sample_parallel, sampler, table

__all__ = ["ContrastiveDenoiserLoss", "sample_parallel", "sampler", "table"]


class ContrastiveDenoiserLoss:
    """k-diffusion's training loss with the contrastive term: `loss(model, x, noise, sigma)`.

    In place of `model.loss(x, noise, sigma)`, where `model` is k-diffusion's `Denoiser` with its
    default weighting: the caller keeps drawing noise and sigma. The mean of the result is

        mean of weighted squared errors + contrastive_weight * L_CDL / D,

    so that `contrastive_weight` means what it means in `ContrastiveDiffusionLoss`.

    Args:
        sigma_data: standard deviation of the data, that of the model.
        contrastive_weight: weight of the contrastive term; 0 gives k-diffusion's loss.
        sigma_min: least noise level that the contrastive term asks about.
        sigma_max: greatest one.
        **options: further arguments of `ContrastiveDiffusionLoss`, as for `ContrastiveEDMLoss`.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: as `ContrastiveDiffusionLoss`, and for a sigma_data that is not positive.
    """

    def __init__(
        self,
        sigma_data: float = 0.5,
        *,
        contrastive_weight: float = 0.01,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        **options: Any,
    ) -> None:
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}")
        self.sigma_data = sigma_data
        self.loss = denoiser_loss(sigma_min, sigma_max, contrastive_weight, options)

    @property
    def last(self) -> dict[str, Tensor]:
        """Parts of the last call, detached, as of `ContrastiveDiffusionLoss`."""
        return self.loss.last

    def __call__(
        self,
        model: Model,
        x: Tensor,
        noise: Tensor,
        sigma: Tensor,
        *,
        generator: torch.Generator | None = None,
        **cond: Any,
    ) -> Tensor:
        """Estimate the loss of every sample with one call of the model.

        Args:
            model: `model(x_t, sigma, **cond)`, returning the denoised sample.
            x: data, `[B, *shape]`.
            noise: standard normal, `[B, *shape]`.
            sigma: noise levels, `[B]`.
            generator: source of the contrastive term's random numbers; None uses PyTorch's global
                one.
            **cond: conditioning; tensors have one entry per sample, the rest is passed as it is.

        Returns:
            Losses `[B]`, with gradient.

        Raises:
            TypeError: if x is not a floating-point tensor.
            ValueError: for wrong shapes, of the model's output too.
        """
        check_batch(x)
        if noise.shape != x.shape or sigma.shape != x.shape[:1]:
            raise ValueError(
                f"noise must have the shape of x, {tuple(x.shape)}, and sigma "
                f"{tuple(x.shape[:1])}, got {tuple(noise.shape)} and {tuple(sigma.shape)}"
            )
        squares, contrastive = errors(
            self.loss, model, x, noise, sigma, self.sigma_data, cond, generator
        )
        return squares.flatten(1).mean(1) + contrastive / x[0].numel()
