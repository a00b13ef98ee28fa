"""Training losses: the denoising loss, and the contrastive diffusion loss around it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ctd_engine import _checks
from ctd_engine._contrast import Contrast, Pairs, Query
from ctd_engine._denoising import DenoisingLoss
from ctd_engine._rows import (
    Model,
    call_model,
    check_batch,
    draw_device,
    draw_normal,
    noised,
    repeat_cond,
)
from ctd_engine.logsnr_distributions import LogSNRDistribution, TruncatedLogistic

if TYPE_CHECKING:
    from ctd_engine.schedules import Schedule

__all__ = ["ContrastiveDiffusionLoss", "DenoisingLoss"]

_DEFAULT_ZETA = TruncatedLogistic(10.5, 1.5, clip=3.0)
# 2 rows for each draw: a sixth more rows; the rest up to half a step is overhead
_SAMPLES_PER_DRAW = 12


@dataclass(frozen=True, eq=False)
class Asked:
    """The points of the contrastive term, and the rows to ask the model about."""

    points: Tensor  # samples of the batch, [K]
    index: Tensor  # the sample of each row, [2 K n]
    pairs: Pairs
    y: Tensor  # [K]

    @property
    def query(self) -> Query:
        """The rows."""
        return self.pairs.query


class ContrastiveDiffusionLoss:
    """Denoising loss plus the contrastive diffusion loss (Wu et al. 2024, arXiv 2407.08946).

    A point z is a data point (y = +1) or one with noise of log-SNR zeta added (y = -1). The model's
    denoising errors give delta = log p_zeta(z) - log p(z), and the contrastive loss is
    L_CDL = T softplus(y delta / T): how badly the model tells the two apart. Its value without any
    skill is T log 2. The model then learns what to answer off the path that it is usually trained
    on.

    Both terms are counted per element of a sample (D of them), so that one weight suits any size:

        total = denoising + contrastive_weight * L_CDL / D
              = ( summed squared error + contrastive_weight * L_CDL ) / D

    The paper takes half of the summed squared error and L_CDL at 1:1, and T = 1:
    `contrastive_weight=2, temperature=1`. Its published code weighs the contrastive term by
    2 / batch, so `contrastive_weight=4 / batch` (0.03 for a batch of 128).

    The temperature T is ours. Few draws leave an estimate of delta whose spread is larger than
    delta itself, and the curved softplus then pulls the model towards a smaller spread, by about
    spread² / (8 T), instead of towards the right answer. A larger T weakens that; the loss stays
    positive and its slope in delta, sigmoid(y delta / T), between 0 and 1, and the scale of the
    weight stays the same. The price: the term is least where delta is T times the true log ratio,
    so that it pushes beyond the truth, against which the denoising term holds; hence the small
    default weight. docs/training.md has what we measured.

    One call of the model evaluates B rows for the first term and 2 K n for the second: by default
    7/6 the rows of a `DenoisingLoss` and at most 1.5 times its time (for batches below 24, which
    have 1 point, 4 rows more). With `common_random_numbers` both densities see the same noise, so
    that what they have in common cancels; without, they are drawn separately, as in the published
    code.

    Args:
        schedule: the noise schedule to train on.
        prediction: what the model returns, as for `DenoisingLoss`.
        time: what the model is told, as for `DenoisingLoss`.
        contrastive_weight: weight of the contrastive term; 0 leaves it out.
        temperature: T, in nats; 1 is the paper's loss.
        num_points: K, how many samples of a batch the contrastive term uses, evenly spread over
            it; None for one draw per 12 samples, and at least one point.
        num_draws: n, draws of log-SNR and noise per point.
        zeta: distribution of the added noise's log-SNR; None for the paper's choice for images
            (logistic, 10.5 and 1.5, on [6, 15]). Data of few dimensions needs smaller values:
            `zeta_from_data` finds one for points ([-3, 5] at variance 1).
        alpha: distribution of the log-SNR over which the likelihood is integrated; None for the
            paper's choice for CIFAR-10 (logistic, 4 and 4, on [-8, 16]). `alpha_from_data` finds
            one. It is cut to the schedule's range, outside of which the model knows nothing.
        common_random_numbers: draw alpha and eps once for both densities.
        alpha_given_zeta: take half of the draws of alpha where they matter for the point's zeta.
            For Gaussian data and zeta of 6 and more it divides the variance by 1.8 to 2.8 with an
            alpha from the data, by 0.6 to 2.7 with the default one (docs/training.md). Without
            common random numbers it has no effect.
        levels: noise levels of the denoising term, as for `DenoisingLoss`.
        sigma_data: standard deviation of the data, for "edm" only.
        backend: backend of `ops.contrastive_reduction`; None for the best one available.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for unknown names, counts below 1, a negative weight, a temperature that is not
            positive, or an `alpha` that has nothing in common with the schedule.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        prediction: str = "epsilon",
        time: str | None = None,
        contrastive_weight: float = 0.01,
        temperature: float = 5.0,
        num_points: int | None = None,
        num_draws: int = 2,
        zeta: LogSNRDistribution | None = None,
        alpha: LogSNRDistribution | None = None,
        common_random_numbers: bool = True,
        alpha_given_zeta: bool = True,
        levels: str | LogSNRDistribution | None = None,
        sigma_data: float = 0.5,
        backend: str | None = None,
    ) -> None:
        if not (contrastive_weight >= 0 and math.isfinite(contrastive_weight)):
            raise ValueError(
                f"contrastive_weight must be finite and at least 0, got {contrastive_weight}"
            )
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature must be positive and finite, got {temperature}")
        if num_points is not None:
            num_points = _checks.require_int("num_points", num_points, minimum=1)
        num_draws = _checks.require_int("num_draws", num_draws, minimum=1)
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
        self.temperature = temperature
        self.num_points = num_points
        self.num_draws = num_draws
        self.zeta = _DEFAULT_ZETA if zeta is None else zeta
        self.common_random_numbers = common_random_numbers
        self.alpha_given_zeta = alpha_given_zeta
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
        """Estimate the loss of a batch with one model call.

        `last` then holds, detached: "denoising" and "contrastive", the two terms as they enter the
        total (per element); "cross_entropy", the mean of softplus(y delta); "delta_mean", that of
        delta over the points of both labels, and its "delta_standard_error" (NaN for one point);
        and "accuracy", the fraction of points that the model classifies correctly.

        Args:
            model: `model(x_t, t, **cond)`, returning the shape of x_t.
            x: data, `[B, *shape]`, in float32 or better: half precision would round the noise of
                a large zeta away. Autocast is for the model.
            generator: source of all random numbers; None uses PyTorch's global one.
            **cond: conditioning; tensors have one entry per sample, the rest is passed as it is.

        Returns:
            The loss, a scalar with gradient.

        Raises:
            TypeError: for arguments of the wrong type.
            ValueError: for wrong shapes, of the model's output too, or `num_points` > B.
        """
        if self.contrastive_weight == 0:
            denoising = self.denoising(model, x, generator=generator, **cond)
            self.last = dict(self.denoising.last)
            return denoising
        check_batch(x)
        rows = self.denoising.rows(x, generator)
        asked = self.ask(x, generator)
        every = torch.arange(len(x), device=x.device)
        # one call: half the launches, and a DistributedDataParallel model wants no second one
        out = call_model(
            model,
            torch.cat([rows.input, asked.query.input]),
            torch.cat([rows.time, asked.query.time]),
            x.dtype,
            repeat_cond(cond, torch.cat([every, asked.index]), len(x)),
        )
        denoising = rows.loss(out[: len(x)])
        contrastive = self.judge(asked, out[len(x) :]).mean() / x[0].numel()
        self.last["denoising"] = denoising.detach()
        return denoising + self.contrastive_weight * contrastive

    def ask(self, x: Tensor, generator: torch.Generator | None) -> Asked:
        """Draw the points of the contrastive term and what to ask the model about them.

        Args:
            x: data, `[B, *shape]`.
            generator: source of all random numbers.

        Returns:
            2 K n rows of a model call.

        Raises:
            ValueError: for `num_points` > B.
        """
        points = self._points(len(x), x.device)
        z, zeta, y = self._draw_points(x[points], generator)
        pairs = self._contrast.pairs(
            z,
            zeta,
            self.num_draws,
            generator,
            common_random_numbers=self.common_random_numbers,
            # drawn apart, the errors of the two densities do not peak
            alpha_given_zeta=self.alpha_given_zeta and self.common_random_numbers,
        )
        return Asked(points, points.repeat_interleave(self.num_draws).repeat(2), pairs, y)

    def judge(self, asked: Asked, out: Tensor) -> Tensor:
        """L_CDL of every point, `[K]`, from the model's raw output; `last` gets its parts."""
        loss, delta = self._contrast.reduce(asked.pairs, out, asked.y, self.temperature)
        delta = delta.detach()
        self.last = {
            "contrastive": loss.detach().mean() / out[0].numel(),
            "cross_entropy": -logsigmoid(-asked.y.to(delta) * delta).mean(),
            "delta_mean": delta.mean(),
            # NaN for a single point: nothing is known then
            "delta_standard_error": (delta.var(correction=0) / (len(delta) - 1)).sqrt(),
            "accuracy": (asked.y.to(delta) * delta < 0).to(delta.dtype).mean(),
        }
        return loss

    def _points(self, num_samples: int, device: torch.device) -> Tensor:
        """Which samples the contrastive term uses, `[K]`."""
        num_points = self.num_points
        if num_points is None:
            num_points = max(1, num_samples // (_SAMPLES_PER_DRAW * self.num_draws))
        if num_points > num_samples:
            raise ValueError(
                f"num_points must be at most the number of samples in x, {num_samples}, got "
                f"{num_points}"
            )
        # evenly spread: parts of a batch then use the same samples as the whole
        return torch.arange(num_points, device=device) * num_samples // num_points

    def _draw_points(
        self, x: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = draw_device(x, generator)
        zeta = self.zeta.sample((len(x),), generator=generator, device=device)
        y = 1.0 - 2.0 * torch.randint(2, (len(x),), generator=generator, device=device)
        eps = draw_normal(tuple(x.shape), x, generator)
        # infinite log-SNR, that is no noise, for the data points
        level = torch.where(y > 0, torch.inf, zeta)
        return noised(x, eps, level).to(x.dtype), zeta, y.to(x.device)
