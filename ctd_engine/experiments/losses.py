"""The losses that are compared, made from their settings."""

from __future__ import annotations

from torch import Tensor

from ctd_engine.experiments.settings import LossSettings
from ctd_engine.logsnr_distributions import TruncatedLogistic, Uniform, alpha_from_data
from ctd_engine.losses import ContrastiveDiffusionLoss, DenoisingLoss
from ctd_engine.schedules import Schedule

__all__ = ["make_loss"]


def make_loss(
    settings: LossSettings, schedule: Schedule, data: Tensor
) -> DenoisingLoss | ContrastiveDiffusionLoss:
    """The loss of some settings for data [M, *shape] and a model that predicts epsilon."""
    levels = None if settings.levels is None else Uniform(*settings.levels)
    if settings.contrastive_weight is None:
        return DenoisingLoss(schedule, levels=levels)
    if settings.alpha is None:
        alpha = alpha_from_data(data)
    else:
        loc, scale, clip = settings.alpha
        alpha = TruncatedLogistic(loc, scale, clip)
    return ContrastiveDiffusionLoss(
        schedule,
        contrastive_weight=settings.contrastive_weight,
        num_points=settings.num_points,
        num_draws=settings.num_draws,
        temperature=settings.temperature,
        zeta=None if settings.zeta is None else Uniform(*settings.zeta),
        alpha=alpha,
        common_random_numbers=settings.common_random_numbers,
        levels=levels,
    )
