"""One sample's path for the peers' schemes: its draws, x0 of points, and a step of the solver.

The papers run a scheme on one sample at a time and so do we: rounds and evaluations are counted
sample by sample, and no sample waits for another, which is the best that a scheme can do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from round_problems import Problem


@dataclass(frozen=True)
class Path:
    """A sample's start [*shape], noise [N, *shape] and label; all states are float64."""

    problem: Problem
    start: Tensor
    noise: Tensor
    label: int | None

    @property
    def num_nodes(self) -> int:
        """N, model calls in a row."""
        return self.problem.table.num_nodes

    def x0(self, x: Tensor, nodes: Tensor) -> Tensor:
        """x0 of points [L, *shape] at nodes [L]: one model call, L evaluations."""
        table = self.problem.table
        rows = (_rows(table.input_scale[nodes], x) * x).to(self.problem.dtype)
        labels = {} if self.label is None else {"label": torch.full_like(nodes, self.label)}
        with torch.no_grad():
            m = self.problem.model(rows, table.model_time[nodes].to(rows), **labels).double()
        x0 = _rows(table.P[nodes], x) * x + _rows(table.Q[nodes], x) * m
        return x0 if table.clip_x0 is None else x0.clamp(-table.clip_x0, table.clip_x0)

    def step(self, x: Tensor, x0: Tensor, nodes: Tensor) -> Tensor:
        """The points after x [L, *shape], made from x0 and the step's own noise."""
        table = self.problem.table
        a, b, c = (_rows(v[nodes], x) for v in (table.A_x0[:, 0], table.B_x0[:, 0], table.C))
        return a * x + b * x0 + c * self.noise[nodes]

    def hold(self, x: Tensor, x0: Tensor, begin: int, end: int) -> Tensor:
        """Points begin + 1 to end, from x at begin with x0 held: no model call."""
        points = [x]
        for node in range(begin, end):
            points.append(self.step(points[-1][None], x0[None], torch.tensor([node]))[0])
        return torch.stack(points[1:]) if end > begin else x.new_zeros(0, *x.shape)


@dataclass(frozen=True)
class Cost:
    """Samples [B, *shape], rounds [B] (model calls in a row) and evaluations [B]."""

    samples: Tensor
    rounds: Tensor
    evaluations: Tensor


Scheme = Callable[[Path, int, float], tuple[Tensor, int, int]]


def run(
    scheme: Scheme, problem: Problem, window: int, tolerance: float, num_samples: int, seed: int
) -> Cost:
    """A scheme (path, window, tolerance) -> (sample, rounds, evaluations), sample by sample."""
    if problem.table.order != 1 or problem.table.rule is not None:
        raise ValueError("the peers' schemes are written for one-step solvers without a rule")
    draws = problem.draws(num_samples, seed)
    noise = draws.get("noise")
    results = []
    for index, start in enumerate(draws["x_init"].double()):
        added = start.expand(problem.table.num_nodes, *start.shape) * 0.0
        label = int(draws["cond"]["label"][index]) if "cond" in draws else None
        z = added if noise is None else noise[:, index].double()
        results.append(scheme(Path(problem, start, z, label), window, tolerance))
    samples, rounds, evaluations = zip(*results, strict=True)
    return Cost(torch.stack(samples), torch.tensor(rounds), torch.tensor(evaluations))


def _rows(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 1))
