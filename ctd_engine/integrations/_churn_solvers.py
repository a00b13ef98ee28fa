"""Solvers that may raise the noise before a step: Karras et al. 2022 (arXiv 2206.00364), Alg. 2.

Raising the noise is part of the step before: nodes hold the state *after* it, x_hat, so that the
step stays linear. The first step's is part of the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ctd_engine import _checks
from ctd_engine.integrations._nodes import SigmaNodes, std_between

__all__ = ["Churn", "churned", "dpm_2", "euler", "heun"]


@dataclass(frozen=True)
class Churn:
    """Step i leaves level `hats[i]`, `levels[i]` with noise of deviation `lifts[i]` added.

    With `draws` every step has noise, if only times 0: a loop that draws in every step finds its
    numbers again.
    """

    levels: list[float]
    hats: list[float]
    lifts: list[float]
    draws: bool

    @property
    def num_steps(self) -> int:
        return len(self.hats)

    def begin(self, name: str) -> SigmaNodes:
        """No node yet; the start gets the first noise."""
        nodes = SigmaNodes(name, start=self.levels[0], lift=self.lifts[0])
        self._draw(nodes, 0)
        return nodes

    def lift_after(self, step: int) -> float:
        """The noise that follows a step; none after the last."""
        return self.lifts[step + 1] if step + 1 < self.num_steps else 0.0

    def end(self, nodes: SigmaNodes, step: int) -> None:
        """The step is complete."""
        if step + 1 < self.num_steps:
            self._draw(nodes, step + 1)

    def _draw(self, nodes: SigmaNodes, step: int) -> None:
        if self.draws:
            nodes.draw(self.levels[step], self.hats[step])


def churned(
    levels: list[float],
    s_churn: float,
    s_min: float,
    s_max: float,
    s_noise: float,
    names: Sequence[str],
    round_sigma: Callable[[list[float]], list[float]] | None = None,
) -> Churn:
    """Levels after the noise is raised: t_hat = t (1 + gamma), gamma = min(S_churn / N, √2 - 1).

    Args:
        levels: [N + 1], falling.
        s_churn, s_min, s_max, s_noise: the paper's; only levels in [s_min, s_max] are raised.
        names: what the caller calls these four, for errors.
        round_sigma: rounds levels to those that a network knows.
    """
    s_churn = _checks.require_float(names[0], s_churn, minimum=0.0)
    s_min = _checks.require_float(names[1], s_min, minimum=0.0)
    if s_max != math.inf:
        s_max = _checks.require_float(names[2], s_max)
    if s_max < s_min:
        raise ValueError(f"{names[2]} must be at least {names[1]} = {s_min:g}, got {s_max:g}")
    s_noise = _checks.require_float(names[3], s_noise, minimum=0.0)
    num_steps = len(levels) - 1
    most = min(s_churn / num_steps, math.sqrt(2.0) - 1.0)
    hats = [t * (1.0 + most) if s_min <= t <= s_max else t for t in levels[:-1]]
    if round_sigma is not None:
        hats = [max(t, hat) for t, hat in zip(levels[:-1], round_sigma(hats), strict=True)]
    lifts = [s_noise * math.sqrt(hat**2 - t**2) for t, hat in zip(levels[:-1], hats, strict=True)]
    return Churn(levels, hats, lifts, draws=s_churn > 0.0)


def euler(churn: Churn) -> SigmaNodes:
    """Alg. 2 without its second-order correction."""
    nodes = churn.begin("euler")
    for i, t in enumerate(churn.hats):
        s = churn.levels[i + 1]
        nodes.add_euler(i, t, s, churn.lift_after(i), scale=std_between(t, s))
        churn.end(nodes, i)
    return nodes


def heun(churn: Churn) -> SigmaNodes:
    """Alg. 2: node 2i is x_hat of step i, node 2i + 1 its Euler prediction; one node to sigma = 0.

    x_s = x_t + (s - t) ((x_t - x0_t) / t + (x~ - x0~) / s) / 2
    """
    nodes = churn.begin("heun")
    for i, t in enumerate(churn.hats):
        s, lift = churn.levels[i + 1], churn.lift_after(i)
        scale = std_between(t, s)
        if s == 0.0:
            nodes.add_euler(i, t, s, scale=scale)
        else:
            half = 0.5 * (s - t)
            nodes.add_euler(i, t, s, scale=scale)
            a, b = [half / s, 1.0 + half / t], [-half / s, -half / t]
            nodes.add(i, s, a, b, lift, scale=scale)
        churn.end(nodes, i)
    return nodes


def dpm_2(churn: Churn) -> SigmaNodes:
    """DPM-Solver-2 in sigma, with Alg. 2's noise."""
    nodes = churn.begin("dpm_2")
    for i, t in enumerate(churn.hats):
        s = churn.levels[i + 1]
        nodes.add_midpoint(i, t, s, churn.lift_after(i), scale=std_between(t, s))
        churn.end(nodes, i)
    return nodes
