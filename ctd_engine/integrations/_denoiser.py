"""The contrastive loss for models that return the denoised sample, told sigma (EDM, k-diffusion).

Such a model D(x + sigma eps, sigma) is one of prediction "x0" with time "sigma" on a
variance-exploding schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ctd_engine import schedules
from ctd_engine._rows import Model, call_model, per_row, repeat_cond
from ctd_engine.losses import ContrastiveDiffusionLoss

__all__ = ["denoiser_loss", "error_weight", "errors"]


def denoiser_loss(
    sigma_min: float, sigma_max: float, contrastive_weight: float, options: Mapping[str, Any]
) -> ContrastiveDiffusionLoss:
    """The loss that draws and judges the contrastive term of a denoiser."""
    return ContrastiveDiffusionLoss(
        schedules.karras(sigma_min, sigma_max),
        prediction="x0",
        time="sigma",
        contrastive_weight=contrastive_weight,
        **options,
    )


def error_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """Weight of a squared error, lambda = 1 / c_out² (Karras et al. 2022, table 1)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def errors(
    loss: ContrastiveDiffusionLoss,
    model: Model,
    x: Tensor,
    noise: Tensor,
    sigma: Tensor,
    sigma_data: float,
    cond: Mapping[str, Any],
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Both terms of every sample, with one model call.

    Args:
        loss: from `denoiser_loss`; its `last` gets the parts.
        model: `model(x_t, sigma, **cond)`, returning the denoised sample.
        x: data, `[B, *shape]`.
        noise: standard normal, `[B, *shape]`.
        sigma: noise levels, `[B]`.
        sigma_data: standard deviation of the data.
        cond: conditioning; tensors have one entry per sample.
        generator: source of the contrastive term's random numbers.

    Returns:
        Weighted squared errors `[B, *shape]`, and contrastive terms `[B]` whose mean over the batch
        is the mean L_CDL of the points times `contrastive_weight`: 0 for samples without a point.
    """
    rows, levels = [x + noise * per_row(sigma, x)], [sigma.to(x)]
    index = [torch.arange(len(x), device=x.device)]
    asked = loss.ask(x, generator) if loss.contrastive_weight > 0 else None
    if asked is not None:
        rows.append(asked.query.input)
        levels.append(asked.query.time.to(x))
        index.append(asked.index)
    rows_cond = repeat_cond(cond, torch.cat(index), len(x))
    out = call_model(model, torch.cat(rows), torch.cat(levels), x.dtype, rows_cond)
    squares = per_row(error_weight(sigma, sigma_data), x) * (out[: len(x)] - x) ** 2
    contrastive = squares.new_zeros(len(x))
    if asked is None:
        loss.last = {}
    else:
        share = loss.contrastive_weight * len(x) / len(asked.points)
        terms = share * loss.judge(asked, out[len(x) :])
        contrastive = contrastive.index_add(0, asked.points.to(x.device), terms.to(squares))
    loss.last["denoising"] = squares.detach().mean()
    return squares, contrastive
