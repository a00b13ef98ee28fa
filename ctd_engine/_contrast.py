"""What the contrastive loss and the likelihood share: draws, and both branches of a log ratio."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ctd_engine._grid_levels import GridLevels
from ctd_engine._proposal import GivenZeta
from ctd_engine._rows import draw_device, draw_normal, noised, per_row
from ctd_engine.logsnr_distributions import LogSNRDistribution, TruncatedLogistic
from ctd_engine.ops.contrastive_reduction import contrastive_reduction
from ctd_engine.parametrization import (
    check_prediction,
    check_time,
    model_time,
    noise_coefficients,
)

if TYPE_CHECKING:
    from ctd_engine.schedules import Schedule

# the paper's setting for CIFAR-10: wide enough for most data scaled to [-1, 1]
DEFAULT_ALPHA = TruncatedLogistic(4.0, 4.0, clip=3.0)


def noised_logsnr(zeta: Tensor, alpha: Tensor) -> Tensor:
    """Log-SNR beta after noise of log-SNR zeta and then alpha: logit(sigmoid(zeta) sigmoid(alpha)).

    Written as -log(e^-zeta + e^-alpha + e^-(zeta + alpha)), which keeps its digits when both are
    large and is exactly alpha for zeta = +inf.
    """
    return -torch.logaddexp(torch.logaddexp(-zeta, -alpha), -zeta - alpha)


def noise_share(alpha: Tensor, beta: Tensor) -> Tensor:
    """b = sqrt(sigmoid(-alpha) / sigmoid(-beta)): the last noise's part of all the noise."""
    return torch.exp(0.5 * (logsigmoid(-alpha) - logsigmoid(-beta)))


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws of log-SNR and noise for K points, n each."""

    logsnr: Tensor  # alpha_n, [K, n], fp64
    weight: Tensor  # w_n = 1 / (density that alpha_n was drawn from), [K, n], fp64
    eps: Tensor  # [K, n, *shape]
    z: Tensor  # z_n, [K, n, *shape]

    def log_ratios(self, out_alpha: Tensor, out_beta: Tensor, b: Tensor) -> Tensor:
        """The log ratio that every single draw gives, `[K, n]`."""
        eps, out_alpha, out_beta = (
            t.reshape(self.weight.numel(), 1, -1) for t in (self.eps, out_alpha, out_beta)
        )
        weight, b = (t.to(eps).reshape(-1, 1) for t in (self.weight, b))
        y = torch.ones_like(b[:, 0])
        return contrastive_reduction(eps, out_alpha, out_beta, weight, b, y)[1].view(
            self.weight.shape
        )


@dataclass(frozen=True, eq=False)
class Query:
    """Rows to ask the model about, and what its answer means."""

    input: Tensor  # [R, *shape]
    time: Tensor  # [R]
    z: Tensor  # [R, *shape]
    u: Tensor  # eps_hat = u z + v out, [R]
    v: Tensor  # [R]

    def noise(self, out: Tensor) -> Tensor:
        """eps_hat from the model's raw output, `[R, *shape]`."""
        return per_row(self.u, self.z) * self.z + per_row(self.v, self.z) * out


@dataclass(frozen=True, eq=False)
class Pairs:
    """Draws for both densities (the same ones, or not) and the rows that they ask about."""

    first: Draws
    second: Draws
    b: Tensor  # [K, n]
    query: Query  # 2 K n rows


class Contrast:
    """Estimates of log p_zeta(z) - log p(z) with one model, schedule and distribution of alpha."""

    def __init__(
        self,
        schedule: Schedule,
        *,
        prediction: str,
        time: str | None,
        sigma_data: float,
        alpha: LogSNRDistribution | None,
        backend: str | None = None,
    ) -> None:
        self.schedule = schedule
        self.prediction = check_prediction(prediction, schedule)
        self.time = check_time(time, schedule)
        self.sigma_data = sigma_data
        if alpha is not None and not isinstance(alpha, LogSNRDistribution):
            raise TypeError(
                f"alpha must be a LogSNRDistribution or None, got {type(alpha).__name__}"
            )
        # a model knows nothing about noise levels outside its schedule
        self.alpha = (alpha or DEFAULT_ALPHA).truncated(*schedule.logsnr_range)
        self._lowest = schedule.logsnr_range[0]
        self.given_zeta = GivenZeta(self.alpha)
        self._grid = GridLevels(schedule) if time == "index" else None
        self.backend = backend

    def draw(
        self,
        z: Tensor,
        num_draws: int,
        generator: torch.Generator | None,
        zeta: Tensor | None = None,
    ) -> Draws:
        """Draw alpha_n and eps_n for the points z and noise them; alpha to suit zeta if given."""
        shape = (z.shape[0], num_draws)
        device = draw_device(z, generator)
        if zeta is None:
            logsnr = self.alpha.sample(shape, generator=generator, device=device)
            density = self.alpha.density(logsnr)
        else:
            logsnr, density = self.given_zeta.sample(zeta.to(device), num_draws, generator)
        if self._grid is not None:
            # the weight is that of the draw, wherever it is moved
            logsnr = self._grid.moved(logsnr, generator)
        eps = draw_normal((*shape, *z.shape[1:]), z, generator)
        x = z.to(eps.dtype).repeat_interleave(num_draws, 0)
        z_rows = noised(x, eps.flatten(0, 1), logsnr.flatten())
        return Draws(logsnr, 1.0 / density, eps, z_rows.view(eps.shape))

    def query(self, z: Tensor, logsnr: Tensor) -> Query:
        """What to ask the model at rows z of a variance-preserving path, whatever its schedule."""
        alpha, sigma = self.schedule.alpha_sigma(logsnr)
        # the schedule's own x_t at this log-SNR is z times this
        scale = torch.sqrt(alpha**2 + sigma**2)
        u, v, input_scale = noise_coefficients(self.prediction, alpha, sigma, self.sigma_data)
        time = model_time(self.time, self.schedule, self.prediction, logsnr)
        return Query(per_row(input_scale * scale, z) * z, time, z, u * scale, v)

    def beta(
        self,
        zeta: Tensor,
        alpha: Tensor,
        generator: torch.Generator | None,
        *,
        same_draws: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-SNR after noise zeta and then alpha; the share of a draw it stands for if not all."""
        # below the schedule all is noise, and the model was never asked
        beta = noised_logsnr(zeta, alpha).clamp_min(self._lowest)
        if self._grid is None:
            return beta, None
        if not same_draws:
            return self._grid.moved(beta, generator), None
        return self._grid.moved_below(beta, alpha, generator)

    def pairs(
        self,
        z: Tensor,
        zeta: Tensor,
        num_draws: int,
        generator: torch.Generator | None,
        *,
        common_random_numbers: bool = True,
        alpha_given_zeta: bool = False,
    ) -> Pairs:
        """Draw what tells p_zeta from p at points z.

        Args:
            z: points, `[K, *shape]`.
            zeta: log-SNRs, `[K]`, fp64.
            num_draws: n.
            generator: source of the random numbers.
            common_random_numbers: use the same alpha_n and eps_n for both densities.
            alpha_given_zeta: draw alpha_n to suit zeta.

        Returns:
            The draws, and the 2 K n rows to ask the model about: first every row at alpha_n, then
            every row at beta_n, point after point in both.
        """
        given = zeta if alpha_given_zeta else None
        first = self.draw(z, num_draws, generator, given)
        second = first if common_random_numbers else self.draw(z, num_draws, generator, given)
        levels = zeta.to(second.logsnr.device)[:, None]
        beta, share = self.beta(levels, second.logsnr, generator, same_draws=second is first)
        if share is not None:
            first = second = replace(first, weight=share * first.weight)
        query = self.query(
            torch.cat([first.z.flatten(0, 1), second.z.flatten(0, 1)]),
            torch.cat([first.logsnr.flatten(), beta.flatten()]),
        )
        return Pairs(first, second, noise_share(second.logsnr, beta), query)

    def reduce(
        self, pairs: Pairs, out: Tensor, y: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Loss and log ratio of points, from the model's raw output.

        Args:
            pairs: draws for K points.
            out: the output at the rows of `pairs.query`, `[2 K n, *shape]`.
            y: labels, `[K]`.
            temperature: T.

        Returns:
            `(loss, delta)`, both `[K]`, with loss = T softplus(y delta / T).
        """
        first, second = pairs.first, pairs.second
        out_alpha, out_beta = pairs.query.noise(out).view(2, *first.weight.shape, -1).unbind()
        eps = first.eps.flatten(2)
        weight, b, y = first.weight.to(eps), pairs.b.to(eps), y.to(eps)
        if second is first:
            # delta is linear in the weights: divided by T they give delta / T
            loss, ratio = contrastive_reduction(
                eps, out_alpha, out_beta, weight / temperature, b, y, backend=self.backend
            )
            return temperature * loss, temperature * ratio
        error_alpha = (eps - out_alpha).square().sum(-1)
        error_beta = (second.eps.flatten(2) - b[..., None] * out_beta).square().sum(-1)
        delta = -0.5 * (second.weight.to(eps) * error_beta - weight * error_alpha).mean(-1)
        return -temperature * logsigmoid(-y * delta / temperature), delta
