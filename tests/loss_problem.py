"""Models, schedules and seeds that the tests of the losses share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ctd_engine import schedules
from ctd_engine._contrast import Contrast
from ctd_engine.logsnr_distributions import TruncatedLogistic
from gaussian_problem import (
    SIGMA_DATA,
)

ALPHA = TruncatedLogistic(0.5, 2.0, clip=10.0)
SCHEDULES: dict[str, Callable[[], schedules.Schedule]] = {
    "vp": schedules.linear_beta,
    "ve": schedules.karras,
    "flow": schedules.flow,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mlp(shape: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float32) -> Callable[..., Tensor]:
    torch.manual_seed(0)
    size = math.prod(shape)
    net = nn.Sequential(nn.Linear(size + 1, 16), nn.Tanh(), nn.Linear(16, size)).to(dtype)

    def model(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        out: Tensor = net(torch.cat([x.flatten(1), 1e-3 * t[:, None].to(x.dtype)], 1))
        return out.view(x.shape)

    model.net = net  # type: ignore[attr-defined]
    return model


def contrast(schedule: schedules.Schedule, prediction: str = "epsilon", **options: Any) -> Contrast:
    settings = {"time": "logsnr", "sigma_data": SIGMA_DATA, "alpha": ALPHA, **options}
    return Contrast(schedule, prediction=prediction, **settings)
