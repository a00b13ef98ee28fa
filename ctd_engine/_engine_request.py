"""What an `Engine` is asked for. Public as `ctd_engine.Request`."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ctd_engine import _checks
from ctd_engine.schedules import Grid
from ctd_engine.solvers import SolverTable

__all__ = ["Request"]

MIN_PRIORITY, MAX_PRIORITY = 1e-3, 1e3


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an `Engine` is asked for; the names mean what they mean to `ParallelSampler`.

    Args:
        num_samples, seed, seeds, x_init, noise, cond, guidance_scale: as in
            `ParallelSampler.sample`.
        x_trajectory: the same.
        solver, num_steps, clip_x0, solver_options, tolerance, method, guess, adaptive_window,
            far_stride, max_rounds: as in `ParallelSampler`.
        window_size: points per window, an integer. Large ones end sooner on an idle engine, small
            ones take fewer model rows and more rounds.
        priority: share of the model rows against others that run at the same time, from 0.001 to
            1000.
        deadline_s: seconds from `submit` on after which the request ends with the best estimates
            so far (`StopReason.DEADLINE`); None for no limit.
    """

    num_samples: int = 1
    seed: int | None = None
    seeds: Sequence[int] | None = None
    x_init: torch.Tensor | None = None
    noise: torch.Tensor | Callable[..., torch.Tensor] | None = None
    cond: Mapping[str, Any] | None = None
    guidance_scale: float | None = None
    x_trajectory: torch.Tensor | None = None
    solver: str | SolverTable = "ddpm"
    num_steps: int | Grid = 1000
    clip_x0: float | None = None
    solver_options: Mapping[str, Any] | None = None
    window_size: int = 16
    tolerance: float = 0.1
    method: str = "picard"
    guess: str = "predicted"
    adaptive_window: float | None = None
    far_stride: int = 1
    max_rounds: int | None = None
    priority: float = 1.0
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        priority = _checks.require_float("priority", self.priority)
        # beyond, sums of rows / priority lose what single rounds add
        if not MIN_PRIORITY <= priority <= MAX_PRIORITY:
            raise ValueError(
                f"priority must be from {MIN_PRIORITY:g} to {MAX_PRIORITY:g}, got {priority:g}"
            )
        if self.deadline_s is not None:
            _checks.require_float("deadline_s", self.deadline_s, above=0.0)
        _checks.require_int("window_size", self.window_size, minimum=1)

    def sampler_arguments(self) -> dict[str, Any]:
        """What of it a `ParallelSampler` is made with."""
        names = (
            "solver",
            "num_steps",
            "clip_x0",
            "solver_options",
            "window_size",
            "tolerance",
            "method",
            "guess",
            "adaptive_window",
            "far_stride",
            "max_rounds",
        )
        return {name: getattr(self, name) for name in names}

    def packed(self, seeds: Sequence[int]) -> bytes:
        """The same with these seeds, for a rank that has another device.

        Raises:
            TypeError: something in it cannot be pickled.
        """
        cond = self.cond
        if cond is not None:
            cond = {name: _on_host(value) for name, value in cond.items()}
        portable = replace(
            self,
            seed=None,
            seeds=seeds,
            x_init=_on_host(self.x_init),
            noise=_on_host(self.noise),
            x_trajectory=_on_host(self.x_trajectory),
            cond=cond,
        )
        try:
            return pickle.dumps(portable)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                f"request must be something that pickle can send to the other ranks: {error}; "
                "define functions such as noise at the top of a module"
            ) from error

    @staticmethod
    def unpacked(packed: bytes) -> Request:
        """What another rank of this program packed."""
        request: Request = pickle.loads(packed)
        return request


def _on_host(value: Any) -> Any:
    return value.cpu() if isinstance(value, torch.Tensor) else value
