"""Noise schedules, in float64 on the CPU.

A schedule is a grid of log-SNRs with the model's native time at each, and a kind that turns a
log-SNR into alpha and sigma of  x_t = alpha x + sigma eps  (logsnr = 2 log(alpha / sigma)):

    "vp"    alpha² = sigmoid(logsnr), sigma² = sigmoid(-logsnr)       time: timestep 0 .. M - 1
    "ve"    alpha = 1, sigma = exp(-logsnr / 2)                       time: sigma
    "flow"  alpha = sigmoid(logsnr / 2), sigma = 1 - alpha            time: t = sigma
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ctd_engine import _checks
from ctd_engine._grid import Grid
from ctd_engine._schedule import Schedule, karras_sigmas, shifted

__all__ = [
    "Grid",
    "Schedule",
    "cosine",
    "flow",
    "from_alphas_cumprod",
    "from_config",
    "get",
    "karras",
    "linear_beta",
    "scaled_linear_beta",
]


def _from_alphas_cumprod(name: str, alphas_cumprod: Tensor, arguments: dict[str, Any]) -> Schedule:
    # log(a / (1 - a)) with both ends kept: 0 becomes minus infinity
    logsnrs = torch.log(alphas_cumprod) - torch.log1p(-alphas_cumprod)
    times = torch.arange(len(logsnrs), dtype=torch.float64)
    return Schedule(name, "vp", logsnrs, times, arguments)


def _betas_schedule(name: str, betas: Tensor, arguments: dict[str, Any]) -> Schedule:
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError(
            f"betas of {name} must lie in (0, 1), got {float(betas.min()):g} to "
            f"{float(betas.max()):g}"
        )
    return _from_alphas_cumprod(name, torch.cumprod(1.0 - betas, 0), arguments)


def _beta_arguments(num_train_steps: int, beta_start: float, beta_end: float) -> dict[str, Any]:
    # plain numbers, so that a checkpoint can write them as JSON
    return dict(
        num_train_steps=_checks.require_int("num_train_steps", num_train_steps, minimum=1),
        beta_start=_checks.require_float("beta_start", beta_start, above=0.0),
        beta_end=_checks.require_float("beta_end", beta_end, above=0.0),
    )


def linear_beta(
    num_train_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> Schedule:
    """Linear betas of DDPM (Ho et al. 2020, arXiv 2006.11239, section 4).

    Args:
        num_train_steps: timesteps 0 .. num_train_steps - 1 that the model was trained at.
        beta_start, beta_end: the first and the last beta; all lie in (0, 1).

    Raises:
        ValueError: a beta outside (0, 1), or no timestep.
    """
    arguments = _beta_arguments(num_train_steps, beta_start, beta_end)
    betas = torch.linspace(
        arguments["beta_start"],
        arguments["beta_end"],
        arguments["num_train_steps"],
        dtype=torch.float64,
    )
    return _betas_schedule("linear_beta", betas, arguments)


def scaled_linear_beta(
    num_train_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Schedule:
    """Betas linear in their square root, of latent diffusion (Rombach et al. 2022, 2112.10752).

    Arguments and errors as `linear_beta`.
    """
    arguments = _beta_arguments(num_train_steps, beta_start, beta_end)
    roots = torch.linspace(
        arguments["beta_start"] ** 0.5,
        arguments["beta_end"] ** 0.5,
        arguments["num_train_steps"],
        dtype=torch.float64,
    )
    return _betas_schedule("scaled_linear_beta", roots.square(), arguments)


def cosine(num_train_steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """Cosine schedule (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17).

    Args:
        num_train_steps: timesteps that the model was trained at.
        s: offset near the data, >= 0.
        max_beta: betas above it are cut to it, in (0, 1).

    Raises:
        ValueError: an argument is out of range.
    """
    num_train_steps = _checks.require_int("num_train_steps", num_train_steps, minimum=1)
    s = _checks.require_float("s", s, minimum=0.0)
    max_beta = _checks.require_float("max_beta", max_beta, above=0.0)
    arguments = dict(num_train_steps=num_train_steps, s=s, max_beta=max_beta)
    t = torch.arange(num_train_steps + 1, dtype=torch.float64) / num_train_steps
    f = torch.cos((t + s) / (1.0 + s) * math.pi / 2.0).square()
    return _betas_schedule("cosine", (1.0 - f[1:] / f[:-1]).clamp(max=max_beta), arguments)


def from_alphas_cumprod(alphas_cumprod: Tensor) -> Schedule:
    """A "vp" schedule from alpha² [M] of a trained model; 0 at the end is zero terminal SNR.

    Raises:
        TypeError: no tensor, nor a list of numbers.
        ValueError: not in [0, 1), not strictly decreasing, or nothing but 0.
    """
    try:
        # a list, as a checkpoint keeps it, must not pass through float32
        values = torch.as_tensor(alphas_cumprod, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"alphas_cumprod must be a tensor [M], got {type(alphas_cumprod).__name__}"
        ) from error
    if values.dim() != 1 or len(values) < 1:
        raise ValueError(f"alphas_cumprod must have shape [M], got {tuple(values.shape)}")
    if not bool(((values >= 0) & (values < 1)).all()):
        raise ValueError(
            f"alphas_cumprod must lie in [0, 1), got {float(values.min()):g} to "
            f"{float(values.max()):g}"
        )
    return _from_alphas_cumprod("from_alphas_cumprod", values, {"alphas_cumprod": values.tolist()})


def karras(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """Variance-exploding schedule of EDM (Karras et al. 2022, arXiv 2206.00364, eq. 5).

    Args:
        sigma_min, sigma_max: least and largest noise level; a grid ends at 0 below the least.
        rho: how much closer levels lie near sigma_min.

    Raises:
        ValueError: an argument is out of range.
    """
    sigma_min = _checks.require_float("sigma_min", sigma_min, above=0.0)
    sigma_max = _checks.require_float("sigma_max", sigma_max, above=sigma_min)
    rho = _checks.require_float("rho", rho, above=0.0)
    arguments = dict(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    sigmas = karras_sigmas(1000, **arguments).flip(0)
    return Schedule("karras", "ve", -2.0 * torch.log(sigmas), sigmas, arguments)


def flow(shift: float = 1.0) -> Schedule:
    """Rectified flow x_t = (1 - t) x + t eps, t shifted to shift t / (1 + (shift - 1) t).

    Liu et al. 2022 (arXiv 2209.03003); the shift is eq. 23 of Esser et al. 2024 (2403.03206).

    Raises:
        ValueError: shift is not above 0.
    """
    shift = _checks.require_float("shift", shift, above=0.0)
    t = shifted(torch.arange(1, 1001, dtype=torch.float64) / 1000, shift)
    return Schedule("flow", "flow", 2.0 * (torch.log1p(-t) - torch.log(t)), t, {"shift": shift})


_SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear_beta": linear_beta,
    "scaled_linear_beta": scaled_linear_beta,
    "cosine": cosine,
    "karras": karras,
    "flow": flow,
    "from_alphas_cumprod": from_alphas_cumprod,
}


def get(name: str) -> Callable[..., Schedule]:
    """The function of this module that makes the named schedule.

    Raises:
        ValueError: the name is unknown.
    """
    return _SCHEDULES[_checks.require_choice("schedule", name, tuple(_SCHEDULES))]


def from_config(config: Mapping[str, Any]) -> Schedule:
    """A schedule from {"name": ..., **arguments}, as a checkpoint keeps it.

    Raises:
        ValueError: no name, an unknown one, or arguments that its function does not take.
    """
    if "name" not in config:
        raise ValueError(f"a schedule's config needs a name, got keys {sorted(config)}")
    arguments = {key: value for key, value in config.items() if key != "name"}
    try:
        return get(config["name"])(**arguments)
    except TypeError as error:
        raise ValueError(f"schedule {config['name']!r}: {error}") from error
