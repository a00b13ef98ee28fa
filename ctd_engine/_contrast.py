"""What the contrastive loss and the likelihood share: draws, both branches, conditioning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

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

Model = Callable[..., Tensor]

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


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Shape a `[R]` tensor so that it multiplies `[R, *shape]`, with the dtype and device of it."""
    return values.to(like.device, like.dtype).reshape(-1, *[1] * (like.dim() - 1))


def draw_device(x: Tensor, generator: torch.Generator | None) -> torch.device:
    """Random numbers are drawn where the generator lives, and copied from there."""
    return x.device if generator is None else generator.device


def draw_normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers in at least fp32, on the device of `like`."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    device = draw_device(like, generator)
    return torch.randn(shape, generator=generator, device=device, dtype=dtype).to(like.device)


def check_batch(x: Tensor, name: str = "x") -> None:
    """A batch of samples: floating point, at least one, at least one dimension each."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(
            f"{name} must be a floating-point tensor, got {x.dtype}; convert and scale it first, "
            "for images to [-1, 1]"
        )
    if x.dim() < 2 or x.shape[0] == 0:
        raise ValueError(f"{name} must have shape [num_samples >= 1, *shape], got {tuple(x.shape)}")


def repeat_cond(cond: Mapping[str, Any], index: Tensor | None, num_samples: int) -> dict[str, Any]:
    """Conditioning of the model's rows; row r belongs to sample index[r] (None: row r)."""
    rows: dict[str, Any] = {}
    for name, value in cond.items():
        if isinstance(value, Tensor) and value.dim() > 0:
            if value.shape[0] != num_samples:
                raise ValueError(
                    f"{name} must have one entry per sample, first dimension {num_samples}, got "
                    f"shape {tuple(value.shape)}; bind what all samples share to the model with "
                    "functools.partial"
                )
            value = value if index is None else value[index.to(value.device)]
        rows[name] = value
    return rows


def call_model(
    model: Model, x: Tensor, time: Tensor, dtype: torch.dtype, cond: Mapping[str, Any]
) -> Tensor:
    """Call the model on rows and check what comes back; times keep fp32 at least."""
    out = model(x.to(dtype), time.to(x.device, x.dtype), **cond)
    if not isinstance(out, Tensor):
        raise TypeError(f"model must return a tensor, got {type(out).__name__}")
    if out.shape != x.shape:
        raise ValueError(
            f"model must return the shape of its input, {tuple(x.shape)} = (rows, *shape), got "
            f"{tuple(out.shape)}"
        )
    return out.to(x.dtype)


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws of log-SNR and noise for K points, n each."""

    logsnr: Tensor  # alpha_n, [K, n], fp64
    weight: Tensor  # w_n = 1 / density(alpha_n), [K, n], fp64
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
        self.backend = backend

    def draw(self, z: Tensor, num_draws: int, generator: torch.Generator | None) -> Draws:
        """Draw alpha_n and eps_n for the points z and noise them."""
        shape = (z.shape[0], num_draws)
        device = draw_device(z, generator)
        logsnr = self.alpha.sample(shape, generator=generator, device=device)
        eps = draw_normal((*shape, *z.shape[1:]), z, generator)
        rows = eps.flatten(0, 1)
        signal = per_row(torch.sigmoid(logsnr).sqrt().flatten(), rows)
        noise = per_row(torch.sigmoid(-logsnr).sqrt().flatten(), rows)
        z_rows = signal * z.to(eps.dtype).repeat_interleave(num_draws, 0) + noise * rows
        return Draws(logsnr, 1.0 / self.alpha.density(logsnr), eps, z_rows.view(eps.shape))

    def predict_noise(
        self,
        model: Model,
        z: Tensor,
        logsnr: Tensor,
        dtype: torch.dtype,
        cond: Mapping[str, Any],
    ) -> Tensor:
        """The model's eps_hat at rows z of a variance-preserving path, whatever its schedule."""
        alpha, sigma = self.schedule.alpha_sigma(logsnr)
        # the schedule's own x_t at this log-SNR is z times this
        scale = torch.sqrt(alpha**2 + sigma**2)
        u, v, input_scale = noise_coefficients(self.prediction, alpha, sigma, self.sigma_data)
        time = model_time(self.time, self.schedule, self.prediction, logsnr)
        out = call_model(model, per_row(input_scale * scale, z) * z, time, dtype, cond)
        return per_row(u * scale, z) * z + per_row(v, z) * out

    def __call__(
        self,
        model: Model,
        z: Tensor,
        zeta: Tensor,
        y: Tensor,
        num_draws: int,
        generator: torch.Generator | None,
        cond: Mapping[str, Any],
        *,
        common_random_numbers: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """One model call of 2 K n rows: first every row at alpha_n, then every row at beta_n.

        Args:
            model: the model.
            z: points, `[K, *shape]`.
            zeta: log-SNRs, `[K]`, fp64.
            y: labels, `[K]`.
            num_draws: n.
            generator: source of the random numbers.
            cond: conditioning of the K points.
            common_random_numbers: use the same alpha_n and eps_n for both densities.

        Returns:
            `(loss, delta)`, both `[K]`.
        """
        first = self.draw(z, num_draws, generator)
        second = first if common_random_numbers else self.draw(z, num_draws, generator)
        beta = noised_logsnr(zeta.to(second.logsnr.device)[:, None], second.logsnr)
        b = noise_share(second.logsnr, beta)
        index = torch.arange(len(z), device=z.device).repeat_interleave(num_draws).repeat(2)
        out = self.predict_noise(
            model,
            torch.cat([first.z.flatten(0, 1), second.z.flatten(0, 1)]),
            torch.cat([first.logsnr.flatten(), beta.flatten()]),
            z.dtype,
            repeat_cond(cond, index, len(z)),
        )
        out_alpha, out_beta = out.view(2, len(z), num_draws, -1).unbind()
        eps = first.eps.flatten(2)
        weight, b = first.weight.to(eps), b.to(eps)
        if common_random_numbers:
            return contrastive_reduction(
                eps, out_alpha, out_beta, weight, b, y.to(eps), backend=self.backend
            )
        error_alpha = (eps - out_alpha).square().sum(-1)
        error_beta = (second.eps.flatten(2) - b[..., None] * out_beta).square().sum(-1)
        delta = -0.5 * (second.weight.to(eps) * error_beta - weight * error_alpha).mean(-1)
        return -logsigmoid(-y.to(eps) * delta), delta
