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
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ctd_engine import _checks
from ctd_engine._grid import Grid

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


@dataclass(frozen=True, eq=False)
class Schedule:
    """A noise schedule; make one with the functions of this module.

    Args:
        name: which function made it.
        kind: "vp", "ve" or "flow", see the module.
        logsnrs: [M], strictly decreasing: index 0 has the least noise.
        times: [M], the native time of each index.
        arguments: what that function was called with.
    """

    name: str
    kind: str
    logsnrs: Tensor
    times: Tensor
    arguments: dict[str, Any] = field(default_factory=dict)
    _copies: dict[torch.device, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        _checks.require_choice("kind", self.kind, ("vp", "ve", "flow"))
        for name in ("logsnrs", "times"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) or value.dim() != 1 or value.dtype != torch.float64:
                raise ValueError(f"{name} must be a float64 tensor [M]")
        if self.logsnrs.shape != self.times.shape or len(self.times) < 1:
            raise ValueError(
                f"logsnrs and times must have one length >= 1, got {len(self.logsnrs)} and "
                f"{len(self.times)}"
            )
        if not bool((self.logsnrs.diff() < 0).all()) or bool(torch.isnan(self.logsnrs).any()):
            raise ValueError(
                "logsnrs must decrease strictly: every index must be noisier than the one before; "
                "a schedule with repeated noise levels has steps of length zero"
            )
        if not bool(torch.isfinite(self.logsnrs[0])):
            raise ValueError(
                "logsnrs must be finite at index 0, the least noise: only the noisiest level may "
                "be pure noise (alpha = 0), and none may be free of noise"
            )

    @property
    def config(self) -> dict[str, Any]:
        """{"name": ..., **arguments}: JSON that `from_config` makes the schedule from again."""
        return {"name": self.name, **self.arguments}

    @property
    def num_train_steps(self) -> int:
        """M, the points of the grid; for "vp" the number of timesteps."""
        return len(self.logsnrs)

    @property
    def logsnr_range(self) -> tuple[float, float]:
        """The finite ends (least, greatest) of the grid's log-SNR."""
        finite = self.logsnrs[torch.isfinite(self.logsnrs)]
        return float(finite[-1]), float(finite[0])

    def alpha_sigma(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at any log-SNR, in its shape, dtype and device."""
        if self.kind == "vp":
            return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()
        if self.kind == "ve":
            return torch.ones_like(logsnr), torch.exp(-0.5 * logsnr)
        return torch.sigmoid(0.5 * logsnr), torch.sigmoid(-0.5 * logsnr)

    def time(self, logsnr: Tensor) -> Tensor:
        """Native model time at any log-SNR, in its shape, dtype and device.

        For "vp" linear interpolation between timesteps, clamped to the first and the last.
        """
        if self.kind == "ve":
            return torch.exp(-0.5 * logsnr)
        if self.kind == "flow":
            return torch.sigmoid(-0.5 * logsnr)
        # ascending in -logsnr; double precision keeps neighbouring timesteps apart
        logsnrs, times = self.on(logsnr.device)
        grid = -logsnrs
        if len(grid) == 1:
            return times.to(logsnr).expand_as(logsnr).clone()
        value = -logsnr.double()
        right = torch.searchsorted(grid, value.contiguous()).clamp(1, len(grid) - 1)
        low, high = grid[right - 1], grid[right]
        fraction = ((value - low) / (high - low)).clamp(0.0, 1.0)
        # an infinite end is the level of minus infinity alone
        fraction = torch.where(torch.isinf(high), (value == high).double(), fraction)
        return torch.lerp(times[right - 1], times[right], fraction).to(logsnr.dtype)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """`logsnrs` and `times` on a device, where they stay: a copy would wait for it."""
        if device not in self._copies:
            self._copies[device] = (self.logsnrs.to(device), self.times.to(device))
        return self._copies[device]

    def grid(self, num_steps: int | Grid) -> Grid:
        """The N + 1 nodes of a solver with N = num_steps, or the given nodes themselves.

        "vp": timesteps round(M - M i / N) - 1, found by index. "ve": Karras et al. 2022
        (arXiv 2206.00364), eq. 5. "flow": t linear from 1 to 0, then shifted.

        Raises:
            ValueError: num_steps < 1, more than the timesteps of a "vp" schedule, or nodes with the
                levels of another kind of schedule.
        """
        if isinstance(num_steps, Grid):
            num_steps.check_kind(self.kind)
            return num_steps
        num_steps = _checks.require_int("num_steps", num_steps, minimum=1)
        if self.kind == "vp":
            num_train = self.num_train_steps
            if num_steps > num_train:
                raise ValueError(
                    f"num_steps must be at most the schedule's {num_train} timesteps, "
                    f"got {num_steps}"
                )
            index = torch.tensor(
                [round(num_train - num_train * i / num_steps) - 1 for i in range(num_steps)]
            )
            logsnr, time = self.logsnrs[index], self.times[index]
        elif self.kind == "ve":
            time = _karras_sigmas(num_steps, **self.arguments)
            logsnr = -2.0 * torch.log(time)
        else:
            t = 1.0 - torch.arange(num_steps, dtype=torch.float64) / num_steps
            time = _shifted(t, **self.arguments)
            logsnr = 2.0 * (torch.log1p(-time) - torch.log(time))
        alpha, sigma = self.alpha_sigma(logsnr)
        one = torch.ones(1, dtype=torch.float64)
        return Grid(
            alpha=torch.cat([alpha, one]),
            sigma=torch.cat([sigma, 0.0 * one]),
            logsnr=torch.cat([logsnr, torch.inf * one]),
            time=time,
        )


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
    """Linear betas of DDPM (Ho et al. 2020, arXiv 2006.11239, section 4)."""
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
    """Betas linear in their square root, of latent diffusion (Rombach et al. 2022)."""
    arguments = _beta_arguments(num_train_steps, beta_start, beta_end)
    roots = torch.linspace(
        arguments["beta_start"] ** 0.5,
        arguments["beta_end"] ** 0.5,
        arguments["num_train_steps"],
        dtype=torch.float64,
    )
    return _betas_schedule("scaled_linear_beta", roots.square(), arguments)


def cosine(num_train_steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """Cosine schedule (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17)."""
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


def _karras_sigmas(num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    if num_steps == 1:
        return torch.tensor([sigma_max], dtype=torch.float64)
    ramp = torch.linspace(0.0, 1.0, num_steps, dtype=torch.float64)
    ends = sigma_max ** (1.0 / rho), sigma_min ** (1.0 / rho)
    sigmas: Tensor = (ends[0] + ramp * (ends[1] - ends[0])) ** rho
    return sigmas


def karras(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """Variance-exploding schedule of EDM (Karras et al. 2022, arXiv 2206.00364, eq. 5)."""
    sigma_min = _checks.require_float("sigma_min", sigma_min, above=0.0)
    sigma_max = _checks.require_float("sigma_max", sigma_max, above=sigma_min)
    rho = _checks.require_float("rho", rho, above=0.0)
    arguments = dict(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    sigmas = _karras_sigmas(1000, **arguments).flip(0)
    return Schedule("karras", "ve", -2.0 * torch.log(sigmas), sigmas, arguments)


def _shifted(t: Tensor, shift: float) -> Tensor:
    # shift t / (1 + (shift - 1) t), in the form that gives t = 1 exactly 1 for any shift
    return shift * t / (shift * t + (1.0 - t))


def flow(shift: float = 1.0) -> Schedule:
    """Rectified flow x_t = (1 - t) x + t eps, t shifted to shift t / (1 + (shift - 1) t).

    Liu et al. 2022 (arXiv 2209.03003); the shift is eq. 23 of Esser et al. 2024 (2403.03206).
    """
    shift = _checks.require_float("shift", shift, above=0.0)
    t = _shifted(torch.arange(1, 1001, dtype=torch.float64) / 1000, shift)
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
    """The function of this module that makes the named schedule."""
    return _SCHEDULES[_checks.require_choice("schedule", name, tuple(_SCHEDULES))]


def from_config(config: Mapping[str, Any]) -> Schedule:
    """A schedule from {"name": ..., **arguments}, as a checkpoint keeps it."""
    if "name" not in config:
        raise ValueError(f"a schedule's config needs a name, got keys {sorted(config)}")
    arguments = {key: value for key, value in config.items() if key != "name"}
    try:
        return get(config["name"])(**arguments)
    except TypeError as error:
        raise ValueError(f"schedule {config['name']!r}: {error}") from error
