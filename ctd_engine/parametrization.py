"""What a model's raw output means, and which number it is told as its time.

With x_t = alpha x0 + sigma eps, a raw output m of every supported kind is linear in x_t and x0:

    x0_hat  = P x_t + Q m            `data_coefficients`
    eps_hat = U x_t + V m            `noise_coefficients`   ( = (x_t - alpha x0_hat) / sigma )
    m*      = p x0 + q eps           `target_coefficients`  (what m is trained to be)

`U` and `V` are written out for each kind instead of being computed from `P` and `Q`: the
difference x_t - alpha x0_hat loses all its digits at small sigma.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ctd_engine.schedules import Schedule

__all__ = [
    "PREDICTIONS",
    "TIMES",
    "check_prediction",
    "check_time",
    "data_coefficients",
    "model_time",
    "noise_coefficients",
    "target_coefficients",
]

PREDICTIONS = ("epsilon", "x0", "v", "flow", "edm")
TIMES = ("timestep", "index", "logsnr", "sigma", "c_noise", "flow")

# how far alpha^2 + sigma^2 may be from 1
LEVEL_SLACK = 1e-6


def check_prediction(prediction: str, schedule: Schedule | None = None) -> str:
    """Check the name of a prediction and, if a schedule is given, that the two fit.

    Args:
        prediction: one of `PREDICTIONS`.
        schedule: the noise schedule the model was trained on.

    Returns:
        `prediction`, unchanged.

    Raises:
        TypeError: if `prediction` is not a string.
        ValueError: if the name is unknown or does not fit the schedule.
    """
    if not isinstance(prediction, str):
        raise TypeError(f"prediction must be a string, got {type(prediction).__name__}")
    if prediction not in PREDICTIONS:
        names = ", ".join(f'"{name}"' for name in PREDICTIONS)
        raise ValueError(f'prediction must be one of {names}, got "{prediction}"')
    if schedule is not None and prediction == "v" and schedule.kind != "vp":
        raise ValueError(
            'prediction "v" needs a variance-preserving schedule (alpha^2 + sigma^2 = 1), got '
            f'schedule "{schedule.name}" of kind "{schedule.kind}"; use "epsilon", "x0", "flow" '
            'or "edm" there'
        )
    return prediction


def check_time(time: str | None, schedule: Schedule | None = None) -> str | None:
    """Check the name of a model time and, if a schedule is given, that the two fit.

    Args:
        time: one of `TIMES`, or None for the native time of the schedule.
        schedule: the noise schedule the model was trained on.

    Returns:
        `time`, unchanged.

    Raises:
        TypeError: if `time` is neither a string nor None.
        ValueError: if the name is unknown or does not fit the schedule.
    """
    if time is None:
        return time
    if not isinstance(time, str):
        raise TypeError(f"time must be a string or None, got {type(time).__name__}")
    if time not in TIMES:
        names = ", ".join(f'"{name}"' for name in TIMES)
        raise ValueError(f'time must be None or one of {names}, got "{time}"')
    if schedule is not None and time in ("timestep", "index") and schedule.kind != "vp":
        raise ValueError(
            f'time "{time}" needs a schedule with discrete timesteps (kind "vp"), got schedule '
            f'"{schedule.name}" of kind "{schedule.kind}"; use None, "logsnr", "sigma" or "c_noise"'
        )
    return time


def data_coefficients(
    prediction: str, alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients of x0_hat = P x_t + Q m, where m = model(input_scale x_t, time).

    For "edm" they are c_skip, c_out and c_in of Karras et al. 2022 (arXiv 2206.00364, table 1),
    written for x_t = alpha x0 + sigma eps by sigma -> sigma / alpha and x -> x / alpha.

    Args:
        prediction: one of `PREDICTIONS`.
        alpha: signal scale, any shape.
        sigma: noise scale, the shape of `alpha`.
        sigma_data: standard deviation of the data, for "edm" only.

    Returns:
        `(P, Q, input_scale)`, each with the shape, dtype and device of `alpha`.

    Raises:
        ValueError: for an unknown prediction, "epsilon" where alpha = 0 (zero terminal SNR,
            flow t = 1), "v" where alpha^2 + sigma^2 is not 1. The two conditions on values are
            checked on the CPU only, because they would stall another device, and not in compiled
            code, whose graph they would break.
    """
    _check_scales(prediction, alpha, sigma, sigma_data)
    one = torch.ones_like(alpha)
    if prediction == "epsilon":
        return 1.0 / alpha, -sigma / alpha, one
    if prediction == "x0":
        return torch.zeros_like(alpha), one, one
    if prediction == "v":
        return alpha.clone(), -sigma, one
    if prediction == "flow":
        return 1.0 / (alpha + sigma), -sigma / (alpha + sigma), one
    scale = torch.rsqrt(sigma**2 + (sigma_data * alpha) ** 2)
    return sigma_data**2 * alpha * scale**2, sigma * sigma_data * scale, scale


def noise_coefficients(
    prediction: str, alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients of eps_hat = U x_t + V m, where m = model(input_scale x_t, time).

    Args:
        prediction: one of `PREDICTIONS`.
        alpha: signal scale, any shape.
        sigma: noise scale, the shape of `alpha`.
        sigma_data: standard deviation of the data, for "edm" only.

    Returns:
        `(U, V, input_scale)`, each with the shape, dtype and device of `alpha`.

    Raises:
        ValueError: as `data_coefficients`, and for "x0" where sigma = 0.
    """
    _check_scales(prediction, alpha, sigma, sigma_data)
    one = torch.ones_like(alpha)
    if prediction == "epsilon":
        return torch.zeros_like(alpha), one, one
    if prediction == "x0":
        if _is_readable(sigma) and bool((sigma == 0).any()):
            raise ValueError(
                'sigma must be positive to read the noise from prediction "x0", got 0; '
                "leave out the noise-free end of the schedule"
            )
        return 1.0 / sigma, -alpha / sigma, one
    if prediction == "v":
        return sigma.clone(), alpha.clone(), one
    if prediction == "flow":
        return 1.0 / (alpha + sigma), alpha / (alpha + sigma), one
    scale = torch.rsqrt(sigma**2 + (sigma_data * alpha) ** 2)
    return sigma * scale**2, -sigma_data * alpha * scale, scale


def target_coefficients(
    prediction: str, alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Coefficients of the training target m* = p x0 + q eps.

    For "edm" the unweighted squared error of this target is Karras et al. 2022's weighted loss:
    their weight is 1 / c_out^2.

    Args:
        prediction: one of `PREDICTIONS`.
        alpha: signal scale, any shape.
        sigma: noise scale, the shape of `alpha`.
        sigma_data: standard deviation of the data, for "edm" only.

    Returns:
        `(p, q)`, each with the shape, dtype and device of `alpha`.

    Raises:
        ValueError: as `data_coefficients`.
    """
    _check_scales(prediction, alpha, sigma, sigma_data)
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    if prediction == "epsilon":
        return zero, one
    if prediction == "x0":
        return one, zero
    if prediction == "v":
        return -sigma, alpha.clone()
    if prediction == "flow":
        return -one, one
    scale = torch.rsqrt(sigma**2 + (sigma_data * alpha) ** 2)
    return sigma * scale / sigma_data, -sigma_data * alpha * scale


def model_time(time: str | None, schedule: Schedule, prediction: str, logsnr: Tensor) -> Tensor:
    """The number a model is given as its time at a log-SNR.

    Args:
        time: one of `TIMES`; None means c_noise for prediction "edm" and the native time of the
            schedule otherwise.
        schedule: the noise schedule the model was trained on.
        prediction: one of `PREDICTIONS`.
        logsnr: 2 log(alpha / sigma), any shape.

    Returns:
        Times of the shape of `logsnr`; int64 for "index", the nearest point of the schedule's grid.

    Raises:
        ValueError: for unknown names, "timestep" or "index" off a "vp" schedule, and a time that is
            infinite because alpha = 0 (checked as for `data_coefficients`).
    """
    check_prediction(prediction)
    check_time(time, schedule)
    if time is None and prediction == "edm":
        time = "c_noise"
    if time is None or time == "timestep":
        return schedule.time(logsnr)
    if time == "index":
        return schedule.time(logsnr).round().to(torch.int64)
    if time == "flow":
        return torch.sigmoid(-0.5 * logsnr)
    if _is_readable(logsnr) and bool(torch.isneginf(logsnr).any()):
        raise ValueError(
            f'time "{time}" is infinite where alpha = 0 (log-SNR of minus infinity: zero terminal '
            'SNR or flow t = 1); use time=None, "timestep" or "flow", or a schedule that stops '
            "before it"
        )
    if time == "logsnr":
        return logsnr.clone()
    if time == "sigma":
        return torch.exp(-0.5 * logsnr)
    return -0.125 * logsnr


def _is_readable(values: Tensor) -> bool:
    """Whether values can be checked without stalling a device or breaking a compiled graph."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_scales(prediction: str, alpha: Tensor, sigma: Tensor, sigma_data: float) -> None:
    check_prediction(prediction)
    if alpha.shape != sigma.shape:
        raise ValueError(
            f"sigma must have the shape of alpha, {tuple(alpha.shape)}, got {tuple(sigma.shape)}"
        )
    if prediction == "edm" and not sigma_data > 0:
        raise ValueError(f"sigma_data must be positive, got {sigma_data}")
    if not _is_readable(alpha):
        return
    if prediction == "epsilon" and bool((alpha == 0).any()):
        raise ValueError(
            'prediction "epsilon" says nothing about the data where alpha = 0 (zero terminal SNR, '
            'or flow t = 1); use a model with prediction "v", "x0" or "flow", or a schedule whose '
            "last log-SNR is finite"
        )
    if prediction == "v":
        # levels of another library may be rounded to float32
        slack = max(LEVEL_SLACK, 64 * torch.finfo(alpha.dtype).eps)
        if not bool(((alpha**2 + sigma**2 - 1.0).abs() <= slack).all()):
            raise ValueError(
                'prediction "v" needs alpha^2 + sigma^2 = 1 (a "vp" schedule); use "epsilon", '
                '"x0", "flow" or "edm" on other schedules'
            )
