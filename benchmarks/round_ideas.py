"""Updates that the sampler does not have, as a short loop on exact problems: what would they save?

    python benchmarks/round_ideas.py [-k WORD] [--tolerance 0.1]

One-step solvers in float64, every sample with its own window, predicted first guesses, all points
in memory. With the derivative J of x0 = E[data | x] at each node a round's change d is handed on as

    x_new_{i+1} = base_{i+1} + A_i d_i + B_i J_i d_i                          (docs/methods.md, 1)

picard: A + B J = 1. secant: J a number per sample and node, from the node's last two evaluations,
A + B J clamped to [0, 1]. newton: the true matrix, which only exact problems have. eigen: its
largest eigenvalue and vector, the rest as if x0 were held.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

from ctd_engine._coefficients import thresholds
from round_problems import Problem, make


@dataclass(frozen=True)
class Idea:
    """An update and what else is tried with it.

    look_ahead: rows beyond the window, every `stride` nodes, that improve the guess only.
    early: tolerance at pure noise over that at the end, growing with sigma².
    guess: of the first window, "predicted" from one evaluation, "zero" with x0 = 0, or "prior"
    with the x0 of data N(0, prior² I), so the solver's exact path for such data.
    first: evaluations in a row before the first window, as ParaSolver has them.
    """

    update: str = "picard"
    guess: str = "predicted"
    prior: float = 1.0
    first: int = 1
    look_ahead: int = 0
    stride: int = 16
    early: float = 1.0


@dataclass(frozen=True)
class Cost:
    """Samples [B, D] of one seed, rounds [B] and evaluations [B]."""

    samples: Tensor
    rounds: Tensor
    evaluations: Tensor


def _derivative(problem: Problem, x: Tensor, nodes: Tensor) -> Tensor:
    # d x0 / d x of rows, [rows, D, D]
    table, model = problem.table, problem.model

    def x0(row: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return model.denoise(row[None], alpha[None, None], sigma[None, None])[0]

    jacobian = torch.func.vmap(torch.func.jacrev(x0), chunk_size=64)
    return jacobian(x, table.alpha[nodes], table.sigma[nodes])


class _Run:
    # x [B, N + 1, D]; of each node's last evaluation: where (at), what (x0), and the response J
    def __init__(self, problem: Problem, idea: Idea, num_samples: int, seed: int) -> None:
        table = problem.table
        if table.order != 1 or table.clip_x0 is not None:
            raise ValueError("ideas are written for one-step solvers without clipping")
        self.problem, self.idea, self.table = problem, idea, table
        draws = problem.draws(num_samples, seed)
        start = draws["x_init"].flatten(1)
        self.a, self.b = table.A_x0[:, 0], table.B_x0[:, 0]
        self.n, (self.num, dim) = table.num_nodes, start.shape
        noise = draws["noise"].flatten(2).transpose(0, 1) if "noise" in draws else None
        self.added = start.new_zeros(self.num, self.n, dim)
        if noise is not None:
            self.added = table.C[:, None] * noise
        self.x = start.new_zeros(self.num, self.n + 1, dim)
        self.x[:, 0], self.x[:, 1] = start, self.a[0] * start + self.added[:, 0]
        self.x0, self.at = torch.zeros_like(self.x[:, 1:]), torch.zeros_like(self.x[:, 1:])
        self.is_known = torch.zeros(self.num, self.n, dtype=torch.bool)
        # x0 over x of an unknown node in the first window
        self.prior = torch.zeros(self.n, dtype=start.dtype)
        if idea.guess == "prior":
            alpha, sigma = table.alpha[:-1], table.sigma[:-1]
            self.prior = alpha * idea.prior**2 / ((alpha * idea.prior) ** 2 + sigma**2)
        self.slope = ((1 - self.a) / self.b).expand(self.num, self.n).clone()
        self.matrix = None
        if idea.update in ("newton", "eigen"):
            self.matrix = start.new_zeros(self.num, self.n, dim, dim)

    def evaluate(self, mask: Tensor) -> None:
        table = self.table
        sample, node = mask.nonzero(as_tuple=True)
        x = self.x[sample, node]
        m = self.problem.model(table.input_scale[node, None] * x, table.model_time[node])
        x0 = table.P[node, None] * x + table.Q[node, None] * m
        if self.idea.update == "secant":
            dx, dx0 = x - self.at[sample, node], x0 - self.x0[sample, node]
            j = (dx * dx0).sum(1) / dx.square().sum(1)
            a, b = self.a[node], self.b[node]
            j = ((a + b * j).clamp(0.0, 1.0) - a) / b
            is_pair = self.is_known[sample, node] & (dx.square().sum(1) > 1e-20)
            self.slope[sample, node] = torch.where(is_pair, j, self.slope[sample, node])
        if self.matrix is not None:
            j = _derivative(self.problem, x, node)
            if self.idea.update == "eigen":
                value, vector = torch.linalg.eigh(0.5 * (j + j.mT))
                top = vector[..., -1]
                j = value[:, -1, None, None] * top[:, :, None] * top[:, None, :]
            self.matrix[sample, node] = j
        self.x0[sample, node], self.at[sample, node] = x0, x
        self.is_known[sample, node] = True

    def sweep(self, start: Tensor, horizon: int) -> Tensor:
        """New states from each window's first point on; mean squared changes [B, horizon]."""
        every = torch.arange(self.num)
        now = self.x[every, start]
        held = self.x0[every, start.clamp(max=self.n - 1)]
        squares = now.new_full((self.num, horizon), torch.inf)
        for j in range(horizon):
            node = (start + j).clamp(max=self.n - 1)
            inside, known = start + j < self.n, self.is_known[every, node, None]
            change = (now - self.at[every, node]).where(known, 0.0)
            if self.matrix is None:
                answer = self.slope[every, node, None] * change
            else:
                answer = (self.matrix[every, node] @ change[..., None])[..., 0]
                # a step of x0 longer than the data is no step
                size = answer.square().mean(1, keepdim=True).sqrt()
                answer = answer / size.clamp(min=1.0)
            if self.idea.guess == "prior" and not bool(self.is_known.any()):
                held = self.prior[node, None] * now
            held = self.x0[every, node].where(known, held)
            new = self.a[node, None] * now + self.b[node, None] * (held + answer)
            new = new + self.added[every, node]
            squares[:, j] = (new - self.x[every, node + 1]).square().mean(1).where(inside, 0.0)
            self.x[every[inside], node[inside] + 1] = new[inside]
            now = new.where(inside[:, None], now)
        return squares


def run(
    problem: Problem, idea: Idea, window: int, tolerance: float, num_samples: int, seed: int
) -> Cost:
    """Sample once; at tolerance 0 the result is the sequential sampler's."""
    state = _Run(problem, idea, num_samples, seed)
    n, table = state.n, problem.table
    threshold = thresholds(table, tolerance, is_published=False)
    threshold = threshold * (1 + (idea.early - 1) * table.sigma.square()).square()
    nodes = torch.arange(n)
    start = torch.zeros(num_samples, dtype=torch.long)
    length = torch.ones_like(start)
    if idea.guess != "predicted":
        length = torch.full_like(start, min(window, n))
        state.sweep(start, min(window, n))
    rounds, evaluations = torch.zeros_like(start), torch.zeros_like(start)
    while bool((start < n).any()):
        end = start + length
        mask = (nodes >= start[:, None]) & (nodes < end[:, None])
        if idea.look_ahead and bool((length > 1).any()):
            limit = end + idea.look_ahead * idea.stride
            ahead = (nodes >= end[:, None]) & (nodes < limit[:, None])
            mask |= ahead & (nodes % idea.stride == 0) & (start < n)[:, None]
        state.evaluate(mask)
        rounds += start < n
        evaluations += mask.sum(1)
        # as far as the next windows and their look-ahead can reach
        horizon = min(n, 2 * window + idea.look_ahead * idea.stride)
        squares = state.sweep(start, horizon)
        reached = (start[:, None] + 1 + torch.arange(horizon)).clamp(max=n)
        converged = (squares <= threshold[reached]).long().cumprod(1).sum(1)
        start = start + torch.minimum(converged + 1, length)
        is_first = idea.guess == "predicted" and int(rounds.max()) < idea.first
        length = torch.full_like(start, 1 if is_first else window)
        length = torch.minimum(length, n - start)
    return Cost(state.x[:, n], rounds, evaluations)


CASES = [
    ("digits 0.1", 25, 0.0, 25),
    ("digits 0.1", 100, 0.0, 100),
    ("mixture 2", 100, 0.0, 100),
    ("mixture 32", 100, 1.0, 100),
    ("digits 0.1", 1000, 1.0, 100),
]
IDEAS = {
    "picard": Idea(),
    "secant": Idea("secant"),
    "newton": Idea("newton"),
    "eigen": Idea("eigen"),
    "picard, early x10": Idea(early=10.0),
    "secant, early x10": Idea("secant", early=10.0),
    "secant, 25 rows ahead": Idea("secant", look_ahead=25),
    "secant, zero": Idea("secant", guess="zero"),
    "secant, prior": Idea("secant", guess="prior"),
    "secant, 5 first": Idea("secant", first=5),
}


def main() -> None:
    """Print rounds and final error of all ideas on the digits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-k", default="", help="only lines with this word")
    parser.add_argument("--tolerance", type=float, default=0.1)
    word, tolerance = vars(parser.parse_args()).values()
    print("rounds of the batch, of a sample, evaluations; median and rms error, share above 0.1")
    for name, num_steps, eta, window in CASES:
        problem = make(name, num_steps, eta)
        truth = torch.cat([problem.sequential(16, seed) for seed in range(2)])
        for title, idea in IDEAS.items():
            line = f"{name}, N {num_steps}, eta {eta:g}, window {window}: {title}"
            # a matrix per node and sample is too much memory for 1000 nodes
            if word not in line or (num_steps > 100 and idea.update in ("newton", "eigen")):
                continue
            costs = [run(problem, idea, window, tolerance, 16, seed) for seed in range(2)]
            rounds = torch.stack([cost.rounds for cost in costs]).double()
            evaluations = torch.stack([cost.evaluations for cost in costs]).double().mean()
            samples = torch.cat([cost.samples for cost in costs])
            error = (samples - truth).square().mean(1).sqrt()
            print(
                f"{line:62s} {rounds.max(1).values.mean():5.1f} {rounds.mean():5.1f} "
                f"{evaluations:6.0f}  {error.median():.5f} {error.square().mean().sqrt():.4f} "
                f"{(error > 0.1).double().mean():.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
