"""Three models of different cost, for `window_size="auto"` against every fixed window."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ctd_engine import DenoisingLoss, ParallelSampler, SequentialSampler, schedules, solvers
from ctd_engine.demo import demo_checkpoint
from ctd_engine.exact import MixtureModel
from ctd_engine.training.mlp import PointMLP
from digits_problem import digits

FIXED_WINDOWS = (1, 2, 4, 8, 16, 32, 64, 128)
TOLERANCE = 0.1


@dataclass(frozen=True)
class Problem:
    """Arguments of `ParallelSampler`, and of its `sample`."""

    arguments: dict[str, Any]
    num_samples: int
    cond: dict[str, torch.Tensor] | None = None

    def sampler(self, window_size: int | str) -> ParallelSampler | SequentialSampler:
        """A new sampler, so that nothing is known of earlier runs."""
        if window_size == "sequential":
            return SequentialSampler(**self.arguments)
        return ParallelSampler(
            **self.arguments, window_size=window_size, tolerance=TOLERANCE, max_rows=256
        )


@cache
def tiny_mlp() -> Problem:
    """Points on two arcs; the network costs less than the sampler's own work on a round."""
    torch.manual_seed(0)
    schedule = schedules.linear_beta()
    angle = torch.rand(2048) * torch.pi
    side = torch.where(torch.arange(2048) % 2 == 0, 1.0, -1.0)
    points = torch.stack([angle.cos() - 0.5 * side, side * angle.sin()], 1)
    model = PointMLP(shape=(2,), width=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    loss_fn = DenoisingLoss(schedule)
    for _ in range(1500):
        loss = loss_fn(model, points[torch.randint(2048, (256,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    table = solvers.ddpm(schedule, 1000)
    return Problem(dict(model=model.eval(), shape=(2,), solver=table), num_samples=4)


@cache
def small_unet() -> Problem:
    """The demo's network; on a CPU its rows cost nearly the same alone and together."""
    trained = demo_checkpoint()
    table = solvers.ddpm(trained.schedule, 250, prediction=trained.prediction, clip_x0=1.0)
    arguments = dict(model=trained.model, shape=trained.shape, solver=table)
    return Problem(arguments, num_samples=2, cond={"label": torch.tensor([3, 7])})


@cache
def slow_model() -> Problem:
    """An exact model that waits like a large network on a GPU: flat up to 64 rows, then linear."""
    table = solvers.ddpm(schedules.linear_beta(), 250)
    exact = MixtureModel(table, digits().float(), 0.1)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        end = time.perf_counter() + 0.01 * max(1.0, len(x) / 64)
        out = exact(x, t)
        time.sleep(max(0.0, end - time.perf_counter()))
        return out

    return Problem(dict(model=model, shape=(64,), solver=table), num_samples=1)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "tiny MLP": tiny_mlp,
    "small U-Net": small_unet,
    "slow model": slow_model,
}
