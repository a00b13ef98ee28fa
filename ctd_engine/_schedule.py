"""Schedule: noise levels, their times, and the nodes of a solver on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ctd_engine import _checks
from ctd_engine._grid import Grid

__all__ = ["Schedule", "karras_sigmas", "shifted"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A noise schedule; make one with the functions of `ctd_engine.schedules`.

    Args:
        name: which function made it.
        kind: "vp", "ve" or "flow", see `ctd_engine.schedules`.
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
            time = karras_sigmas(num_steps, **self.arguments)
            logsnr = -2.0 * torch.log(time)
        else:
            t = 1.0 - torch.arange(num_steps, dtype=torch.float64) / num_steps
            time = shifted(t, **self.arguments)
            logsnr = 2.0 * (torch.log1p(-time) - torch.log(time))
        alpha, sigma = self.alpha_sigma(logsnr)
        one = torch.ones(1, dtype=torch.float64)
        return Grid(
            alpha=torch.cat([alpha, one]),
            sigma=torch.cat([sigma, 0.0 * one]),
            logsnr=torch.cat([logsnr, torch.inf * one]),
            time=time,
        )


def karras_sigmas(num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Karras et al. 2022 (arXiv 2206.00364), eq. 5, without the 0 at the end."""
    if num_steps == 1:
        return torch.tensor([sigma_max], dtype=torch.float64)
    ramp = torch.linspace(0.0, 1.0, num_steps, dtype=torch.float64)
    ends = sigma_max ** (1.0 / rho), sigma_min ** (1.0 / rho)
    sigmas: Tensor = (ends[0] + ramp * (ends[1] - ends[0])) ** rho
    return sigmas


def shifted(t: Tensor, shift: float) -> Tensor:
    """shift t / (1 + (shift - 1) t) (Esser et al. 2024, arXiv 2403.03206, eq. 23)."""
    # in the form that gives t = 1 exactly 1 for any shift
    return shift * t / (shift * t + (1.0 - t))
