"""SRDS (Selvam, Merchant and Ermon 2024, arXiv 2412.08292, Alg. 1): parareal on sqrt(N) blocks.

    X_{b+1}^{p+1} = F(X_b^p) + G(X_b^{p+1}) - G(X_b^p)

G is one DDIM step over a block, F the solver's own steps; X^0 comes from G alone. It ends when the
sample changes by at most `tolerance` (mean absolute difference) and is exact after as many
iterations as there are blocks. Rounds are the paper's pipelined count: a fine solve of block b
starts as soon as X_b^p is known, so that X_{b+1}^{p+1} is ready at

    t(b + 1, p + 1) = max(t(b, p) + steps of b, t(b, p + 1) + 1),    t(b, 0) = b

and blocks whose first point is final are not solved again. Calls of all blocks at one time are one
round, which needs a row per block. For ODE solvers; with noise the paper has no coarse step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from round_paths import Path


def _coarse(path: Path, x: Tensor, begin: int, end: int) -> Tensor:
    # one DDIM step (Song et al. 2021, eq. 12, eta = 0) from node begin to node end
    alpha, sigma = path.problem.table.alpha, path.problem.table.sigma
    x0 = path.x0(x[None], torch.tensor([begin]))[0]
    return alpha[end] * x0 + sigma[end] / sigma[begin] * (x - alpha[begin] * x0)


def _fine(path: Path, x: list[Tensor], ends: list[int], first: int) -> dict[int, Tensor]:
    # the ends of all blocks from `first` on, each step of every block in one model call
    blocks = torch.arange(first, len(ends) - 1)
    begins, ends_of = torch.tensor(ends)[blocks], torch.tensor(ends)[blocks + 1]
    points = torch.stack(x[first:-1])
    for offset in range(int((ends_of - begins).max())):
        rows = (begins + offset < ends_of).nonzero()[:, 0]
        nodes = begins[rows] + offset
        points[rows] = path.step(points[rows], path.x0(points[rows], nodes), nodes)
    return dict(zip(blocks.tolist(), points, strict=True))


def srds(path: Path, window: int, tolerance: float) -> tuple[Tensor, int, int]:
    """Sample [*shape], pipelined rounds and evaluations; the window is not used."""
    if path.problem.table.is_stochastic:
        raise ValueError("SRDS is for ODE solvers, eta = 0: its coarse step has no noise")
    n = path.num_nodes
    num_blocks = math.isqrt(n - 1) + 1
    ends = [round(b * n / num_blocks) for b in range(num_blocks + 1)]
    x, coarse = [path.start], []
    for b in range(num_blocks):
        coarse.append(_coarse(path, x[b], ends[b], ends[b + 1]))
        x.append(coarse[b])
    ready, evaluations = list(range(num_blocks + 1)), num_blocks
    for first in range(num_blocks):
        fine = _fine(path, x, ends, first)
        evaluations += n - ends[first]
        new, then = list(x), list(ready)
        for b in range(first, num_blocks):
            done = ready[b] + ends[b + 1] - ends[b]
            if b == first:
                # X_b did not change, so neither did its coarse step
                new[b + 1], then[b + 1] = fine[b], done
                continue
            again = _coarse(path, new[b], ends[b], ends[b + 1])
            new[b + 1] = fine[b] + again - coarse[b]
            then[b + 1] = max(done, then[b] + 1)
            coarse[b] = again
            evaluations += 1
        change = float((new[-1] - x[-1]).abs().mean())
        x, ready = new, then
        if change <= tolerance:
            break
    return x[-1], ready[-1], evaluations
