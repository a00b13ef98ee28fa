"""EDM: its sampler and networks, and the contrastive loss with the call of its `EDMLoss`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ctd_engine._rows import check_batch, draw_normal, per_row
from ctd_engine.integrations._denoiser import denoiser_loss, errors
from ctd_engine.integrations._edm_convert import convert_pickle
from ctd_engine.integrations._edm_sampler import heun_table, sampler

__all__ = ["ContrastiveEDMLoss", "convert_pickle", "heun_table", "sampler"]


class ContrastiveEDMLoss:
    """EDM's training loss (Karras et al. 2022, arXiv 2206.00364, table 1) with a contrastive term.

    The denoising part is EDM's own: sigma log-normal, errors of the denoised image weighted by
    (sigma² + sigma_data²) / (sigma sigma_data)². In EDM's training loop, which minimises the sum of
    the returned tensor over the batch size, it is

        sum of weighted squared errors + contrastive_weight * L_CDL,

    so that `contrastive_weight` means what it means in `ContrastiveDiffusionLoss`.

    Args:
        P_mean: mean of log(sigma).
        P_std: standard deviation of log(sigma).
        sigma_data: standard deviation of the data.
        contrastive_weight: weight of the contrastive term; 0 gives EDM's loss.
        sigma_min: least noise level that the contrastive term asks about.
        sigma_max: greatest one.
        **options: further arguments of `ContrastiveDiffusionLoss`: `num_points`, `num_draws`,
            `zeta`, `alpha`, `common_random_numbers`, `alpha_given_zeta`, `backend`.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: as `ContrastiveDiffusionLoss`, and for a spread that is not positive.
    """

    def __init__(
        self,
        P_mean: float = -1.2,
        P_std: float = 1.2,
        sigma_data: float = 0.5,
        *,
        contrastive_weight: float = 0.01,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        **options: Any,
    ) -> None:
        for name, value in (("P_std", P_std), ("sigma_data", sigma_data)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self.P_mean = P_mean
        self.P_std = P_std
        self.sigma_data = sigma_data
        self.loss = denoiser_loss(sigma_min, sigma_max, contrastive_weight, options)

    @property
    def last(self) -> dict[str, Tensor]:
        """Parts of the last call, detached, as of `ContrastiveDiffusionLoss`."""
        return self.loss.last

    def __call__(
        self,
        net: Callable[..., Tensor],
        images: Tensor,
        labels: Tensor | None = None,
        augment_pipe: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Estimate the loss of a batch with one call of the network.

        Args:
            net: EDM's preconditioned network, `net(x, sigma, labels, augment_labels=...)`.
            images: `[B, C, H, W]`, in [-1, 1].
            labels: `[B, L]`, or None.
            augment_pipe: EDM's augmentation, images -> (images, augment_labels), or None.
            generator: source of all random numbers; None uses PyTorch's global one.

        Returns:
            Losses `[B, C, H, W]` with gradient; a sample's contrastive term is spread evenly over
            its elements.

        Raises:
            TypeError: if images are not a floating-point tensor.
            ValueError: for wrong shapes, of the network's output too.
        """
        check_batch(images, "images")
        y, augment_labels = (images, None) if augment_pipe is None else augment_pipe(images)
        normal = draw_normal((len(y), 1), y, generator)[:, 0]
        sigma = torch.exp(self.P_mean + self.P_std * normal)
        noise = draw_normal(tuple(y.shape), y, generator)

        def model(
            x: Tensor, t: Tensor, labels: Tensor | None, augment_labels: Tensor | None
        ) -> Tensor:
            return net(x, t.reshape(-1, 1, 1, 1), labels, augment_labels=augment_labels)

        squares, contrastive = errors(
            self.loss,
            model,
            y,
            noise,
            sigma,
            self.sigma_data,
            {"labels": labels, "augment_labels": augment_labels},
            generator,
        )
        return squares + per_row(contrastive / y[0].numel(), y)
