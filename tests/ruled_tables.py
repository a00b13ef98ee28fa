"""Tables whose steps are not linear in the model's output, and models for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ctd_engine import schedules, solvers
from ctd_engine._output_rule import OutputRule
from ctd_engine.solvers import SolverTable

SHAPE = (2, 4)
NUM_STEPS = 12


def ruled(num_steps: int = NUM_STEPS, **rule: Any) -> SolverTable:
    """DDIM with eta = 0.5 and a rule, whose vectors are cut to the number of steps."""
    table = solvers.ddim(schedules.linear_beta(), num_steps, eta=0.5)
    cut = {k: v[:num_steps] if isinstance(v, Tensor) else v for k, v in rule.items()}
    return replace(table, rule=OutputRule(**cut))


def _vector(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, NUM_STEPS, dtype=torch.float64)


RULES: dict[str, dict[str, Any]] = {
    "clip": dict(clip=0.8),
    "clip, unclipped noise": dict(clip=0.8, remainder=_vector(-0.6, -0.1)),
    "threshold": dict(quantile=0.7, max_value=1.6),
    "threshold, unclipped noise": dict(quantile=0.7, remainder=_vector(-0.6, -0.1)),
    "learned": dict(variance="learned"),
    "learned range": dict(
        variance="learned_range", low=_vector(0.1, 0.02), high=_vector(0.4, 0.2), clip=1.1
    ),
    "unused variance": dict(variance="unused"),
}


class RuledModel(torch.nn.Module):
    """A nonlinear function, with as many channels again in (0, 1) if a variance is wanted."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
        out = torch.sin(1.2 * x + 0.01 * t[:, None, None]) + 0.3 * torch.cos(x.flip(-1))
        if shift is not None:
            out = out + shift[:, None, None]
        if self.outputs == 1:
            return out
        return torch.cat([out, 0.5 + 0.4 * torch.cos(2.0 * out)], dim=1)
