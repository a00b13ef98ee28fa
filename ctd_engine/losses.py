"""Training losses: the denoising loss, and the contrastive diffusion loss around it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ctd_engine._contrast import (
    Contrast,
    Model,
    call_model,
    check_batch,
    draw_device,
    draw_normal,
    per_row,
    repeat_cond,
)
from ctd_engine.logsnr_distributions import (
    LogSNRDistribution,
    TruncatedLogistic,
    training_levels,
)
from ctd_engine.parametrization import (
    check_prediction,
    check_time,
    data_coefficients,
    model_time,
    target_coefficients,
)

if TYPE_CHECKING:
    from ctd_engine.schedules import Schedule

__all__ = ["ContrastiveDiffusionLoss", "DenoisingLoss"]

_DEFAULT_ZETA = TruncatedLogistic(10.5, 1.5, clip=3.0)


class DenoisingLoss:
    """Mean squared error per element of the model's own output at a random noise level.

    The target is the quantity that the model predicts (`prediction`), so that for "edm" this is
    the weighted loss of Karras et al. 2022 (arXiv 2206.00364, eq. 8 and table 1).

    Args:
        schedule: the noise schedule to train on.
        prediction: what the model returns: "epsilon", "x0", "v", "flow" or "edm".
        time: what the model is told: None (native; c_noise for "edm"), "timestep", "logsnr",
            "sigma", "c_noise" or "flow".
        levels: distribution of the noise level: "discrete" (a uniform index of the schedule's
            grid), "lognormal" (EDM's sigma), "logit_normal" or "uniform" (in flow matching's t),
            a `LogSNRDistribution`, or None: "discrete" for schedules of kind "vp", "lognormal" for
            "ve", "logit_normal" for "flow". What the schedule does not cover is cut off.
        sigma_data: standard deviation of the data, for "edm" only.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for unknown names, or a prediction that does not fit the schedule.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        prediction: str = "epsilon",
        time: str | None = None,
        levels: str | LogSNRDistribution | None = None,
        sigma_data: float = 0.5,
    ) -> None:
        self.schedule = schedule
        self.prediction = check_prediction(prediction, schedule)
        self.time = check_time(time, schedule)
        self.sigma_data = sigma_data
        self.levels = training_levels(levels, schedule)
        self.last: dict[str, Tensor] = {}
        if self.levels is None:
            # a noise level that the prediction or the time cannot express is refused now
            data_coefficients(prediction, *schedule.alpha_sigma(schedule.logsnrs), sigma_data)
            model_time(time, schedule, prediction, schedule.logsnrs)

    def __call__(
        self,
        model: Model,
        x: Tensor,
        *,
        generator: torch.Generator | None = None,
        **cond: Any,
    ) -> Tensor:
        """Estimate the loss of a batch with one model call.

        Args:
            model: `model(x_t, t, **cond)`, returning the shape of x_t.
            x: data, `[B, *shape]`.
            generator: source of all random numbers; None uses PyTorch's global one.
            **cond: conditioning; tensors have one entry per sample, the rest is passed as it is.

        Returns:
            The loss, a scalar with gradient. `last` holds it detached, as "denoising".

        Raises:
            TypeError: for arguments of the wrong type.
            ValueError: for wrong shapes, of the model's output too.
        """
        check_batch(x)
        device = draw_device(x, generator)
        if self.levels is None:
            grid = self.schedule.logsnrs
            index = torch.randint(len(grid), (len(x),), generator=generator, device=device)
            logsnr = grid.to(device)[index]
        else:
            logsnr = self.levels.sample((len(x),), generator=generator, device=device)
        alpha, sigma = self.schedule.alpha_sigma(logsnr)
        eps = draw_normal(tuple(x.shape), x, generator)
        x0 = x.to(eps.dtype)
        _, _, input_scale = data_coefficients(self.prediction, alpha, sigma, self.sigma_data)
        p, q = target_coefficients(self.prediction, alpha, sigma, self.sigma_data)
        signal, noise = per_row(input_scale * alpha, eps), per_row(input_scale * sigma, eps)
        time = model_time(self.time, self.schedule, self.prediction, logsnr)
        rows = repeat_cond(cond, None, len(x))
        out = call_model(model, signal * x0 + noise * eps, time, x.dtype, rows)
        loss = (out - (per_row(p, eps) * x0 + per_row(q, eps) * eps)).square().mean()
        self.last = {"denoising": loss.detach()}
        return loss


class ContrastiveDiffusionLoss:
    """Denoising loss plus the contrastive diffusion loss (Wu et al. 2024, arXiv 2407.08946).

    A point z is a data point (y = +1) or one with noise of log-SNR zeta added (y = -1). The model's
    denoising errors give delta = log p_zeta(z) - log p(z), and the contrastive loss is
    L_CDL = softplus(y delta): how badly the model tells the two apart. Its value without any skill
    is log 2. The model then learns what to answer off the path that it is usually trained on.

    Both terms are counted per element of a sample (D of them), so that one weight suits any size:

        total = denoising + contrastive_weight * L_CDL / D
              = ( summed squared error + contrastive_weight * L_CDL ) / D

    The paper takes half of the summed squared error and L_CDL at 1:1: `contrastive_weight=2`. Its
    published code weighs the contrastive term by 2 / batch, so `contrastive_weight=4 / batch`
    (0.03 for a batch of 128). From 0.01 to 0.1 helped in our trials with 2D data; 1 did harm.

    One call costs B rows of the model for the first term and 2 K n rows, in one call, for the
    second. With `common_random_numbers` both densities see the same noise, so that what they have
    in common cancels; without, they are drawn separately, as in the published code.

    Args:
        schedule: the noise schedule to train on.
        prediction: what the model returns, as for `DenoisingLoss`.
        time: what the model is told, as for `DenoisingLoss`.
        contrastive_weight: weight of the contrastive term; 0 leaves it out.
        num_points: K, points per batch that the contrastive term uses, the first ones; None for
            all of them.
        num_draws: n, draws of log-SNR and noise per point.
        zeta: distribution of the added noise's log-SNR; None for the paper's choice for images
            (logistic, 10.5 and 1.5, on [6, 15]). Data of few dimensions needs smaller values.
        alpha: distribution of the log-SNR over which the likelihood is integrated; None for the
            paper's choice for CIFAR-10 (logistic, 4 and 4, on [-8, 16]). `logistic_from_data` finds
            one. It is cut to the schedule's range, outside of which the model knows nothing.
        common_random_numbers: draw alpha and eps once for both densities.
        levels: noise levels of the denoising term, as for `DenoisingLoss`.
        sigma_data: standard deviation of the data, for "edm" only.
        backend: backend of `ops.contrastive_reduction`; None for the best one available.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for unknown names, counts below 1, a negative weight, or an `alpha` that has
            nothing in common with the schedule.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        prediction: str = "epsilon",
        time: str | None = None,
        contrastive_weight: float = 0.05,
        num_points: int | None = None,
        num_draws: int = 1,
        zeta: LogSNRDistribution | None = None,
        alpha: LogSNRDistribution | None = None,
        common_random_numbers: bool = True,
        levels: str | LogSNRDistribution | None = None,
        sigma_data: float = 0.5,
        backend: str | None = None,
    ) -> None:
        if not (contrastive_weight >= 0 and math.isfinite(contrastive_weight)):
            raise ValueError(
                f"contrastive_weight must be finite and at least 0, got {contrastive_weight}"
            )
        if num_points is not None and num_points < 1:
            raise ValueError(f"num_points must be None or at least 1, got {num_points}")
        if num_draws < 1:
            raise ValueError(f"num_draws must be at least 1, got {num_draws}")
        if zeta is not None and not isinstance(zeta, LogSNRDistribution):
            raise TypeError(f"zeta must be a LogSNRDistribution or None, got {type(zeta).__name__}")
        self.denoising = DenoisingLoss(
            schedule, prediction=prediction, time=time, levels=levels, sigma_data=sigma_data
        )
        self._contrast = Contrast(
            schedule,
            prediction=prediction,
            time=time,
            sigma_data=sigma_data,
            alpha=alpha,
            backend=backend,
        )
        self.contrastive_weight = contrastive_weight
        self.num_points = num_points
        self.num_draws = num_draws
        self.zeta = _DEFAULT_ZETA if zeta is None else zeta
        self.common_random_numbers = common_random_numbers
        self.last: dict[str, Tensor] = {}

    @property
    def alpha(self) -> LogSNRDistribution:
        """Distribution of alpha, cut to the schedule's range."""
        return self._contrast.alpha

    def __call__(
        self,
        model: Model,
        x: Tensor,
        *,
        generator: torch.Generator | None = None,
        **cond: Any,
    ) -> Tensor:
        """Estimate the loss of a batch with two model calls.

        `last` then holds, detached: "denoising" and "contrastive", the two terms as they enter the
        total (per element); "cross_entropy", the mean of L_CDL in nats; "delta_mean"; and
        "accuracy", the fraction of points that the model classifies correctly.

        Args:
            model: `model(x_t, t, **cond)`, returning the shape of x_t.
            x: data, `[B, *shape]`.
            generator: source of all random numbers; None uses PyTorch's global one.
            **cond: conditioning; tensors have one entry per sample, the rest is passed as it is.

        Returns:
            The loss, a scalar with gradient.

        Raises:
            TypeError: for arguments of the wrong type.
            ValueError: for wrong shapes, of the model's output too, or `num_points` > B.
        """
        denoising = self.denoising(model, x, generator=generator, **cond)
        if self.contrastive_weight == 0:
            self.last = dict(self.denoising.last)
            return denoising
        num_points = len(x) if self.num_points is None else self.num_points
        if num_points > len(x):
            raise ValueError(
                f"num_points must be at most the number of samples in x, {len(x)}, got {num_points}"
            )
        points = repeat_cond(cond, torch.arange(num_points), len(x))
        z, zeta, y = self._draw_points(x[:num_points], generator)
        loss, delta = self._contrast(
            model,
            z,
            zeta,
            y,
            self.num_draws,
            generator,
            points,
            common_random_numbers=self.common_random_numbers,
        )
        cross_entropy = loss.mean()
        contrastive = cross_entropy / x[0].numel()
        self.last = {
            **self.denoising.last,
            "contrastive": contrastive.detach(),
            "cross_entropy": cross_entropy.detach(),
            "delta_mean": delta.detach().mean(),
            "accuracy": (y.to(delta) * delta.detach() < 0).to(delta.dtype).mean(),
        }
        return denoising + self.contrastive_weight * contrastive

    def _draw_points(
        self, x: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = draw_device(x, generator)
        zeta = self.zeta.sample((len(x),), generator=generator, device=device)
        y = 1.0 - 2.0 * torch.randint(2, (len(x),), generator=generator, device=device)
        eps = draw_normal(tuple(x.shape), x, generator)
        # infinite log-SNR, that is no noise, for the data points
        level = torch.where(y > 0, torch.inf, zeta)
        signal = per_row(torch.sigmoid(level).sqrt(), eps)
        noise = per_row(torch.sigmoid(-level).sqrt(), eps)
        return (signal * x + noise * eps).to(x.dtype), zeta, y.to(x.device)
