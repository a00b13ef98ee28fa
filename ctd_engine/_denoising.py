"""The denoising loss: what diffusion models are usually trained with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ctd_engine._rows import (
    Model,
    call_model,
    check_batch,
    draw_device,
    draw_normal,
    per_row,
    repeat_cond,
)
from ctd_engine._training_levels import training_levels
from ctd_engine.logsnr_distributions import LogSNRDistribution
from ctd_engine.parametrization import (
    check_prediction,
    check_time,
    data_coefficients,
    model_time,
    target_coefficients,
)

if TYPE_CHECKING:
    from ctd_engine.schedules import Schedule

__all__ = ["DenoisingLoss", "DenoisingRows"]


@dataclass(frozen=True, eq=False)
class DenoisingRows:
    """Rows of a model call, and what the model should answer."""

    input: Tensor  # [B, *shape]
    time: Tensor  # [B]
    target: Tensor  # [B, *shape]

    def loss(self, out: Tensor) -> Tensor:
        """Mean squared error per element of the model's output, `[B, *shape]`."""
        return (out - self.target).square().mean()


class DenoisingLoss:
    """Mean squared error per element of the model's own output at a random noise level.

    The target is the quantity that the model predicts (`prediction`), so that for "edm" this is
    the weighted loss of Karras et al. 2022 (arXiv 2206.00364, eq. 8 and table 1).

    Args:
        schedule: the noise schedule to train on.
        prediction: what the model returns: "epsilon", "x0", "v", "flow" or "edm".
        time: what the model is told: None (native; c_noise for "edm"), "timestep", "index" (an
            int64 timestep, for models that look it up in a table), "logsnr", "sigma", "c_noise" or
            "flow".
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
        if time == "index" and self.levels is not None:
            raise ValueError(
                'time "index" needs levels "discrete": between the points of the schedule\'s grid '
                "there is no index to tell the model"
            )
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
        rows = self.rows(x, generator)
        conditions = repeat_cond(cond, None, len(x))
        loss = rows.loss(call_model(model, rows.input, rows.time, x.dtype, conditions))
        self.last = {"denoising": loss.detach()}
        return loss

    def rows(self, x: Tensor, generator: torch.Generator | None) -> DenoisingRows:
        """Draw noise for a batch, and say what to ask the model.

        Args:
            x: data, `[B, *shape]`.
            generator: source of all random numbers.

        Returns:
            B rows of a model call and what they should give.
        """
        device = draw_device(x, generator)
        if self.levels is None:
            grid, _ = self.schedule.on(device)
            index = torch.randint(len(grid), (len(x),), generator=generator, device=device)
            logsnr = grid[index]
        else:
            logsnr = self.levels.sample((len(x),), generator=generator, device=device)
        alpha, sigma = self.schedule.alpha_sigma(logsnr)
        eps = draw_normal(tuple(x.shape), x, generator)
        x0 = x.to(eps.dtype)
        _, _, input_scale = data_coefficients(self.prediction, alpha, sigma, self.sigma_data)
        p, q = target_coefficients(self.prediction, alpha, sigma, self.sigma_data)
        signal, noise = per_row(input_scale * alpha, eps), per_row(input_scale * sigma, eps)
        time = model_time(self.time, self.schedule, self.prediction, logsnr)
        target = per_row(p, eps) * x0 + per_row(q, eps) * eps
        return DenoisingRows(signal * x0 + noise * eps, time, target)
