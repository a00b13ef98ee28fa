"""ParaTAA (Tang et al. 2024, arXiv 2402.09970): triangular Anderson acceleration of order k.

The k-th order fixed point of point i + 1 starts from point j = max(i + 1 - k, the window's first),
in the epsilon form x_{i+1} = a_i x_i + b_i eps_i + C_i z_i (their eq. 8):

    F_{i+1} = (prod a) x_j + sum_{l = j..i} (prod_{later} a) (b_l eps_l + C_l z_l),   R = F(x) - x

With dX, dR the last m - 1 differences of iterates and residuals, a point's update uses the points
up to itself only: g = (sum dR dR^T + lambda)^-1 sum dR R and x <- x + R - (dX + dR) g.
The first open point is updated without acceleration, which is the safeguard that keeps the bound
of N rounds. A point is closed where rms of the first-order residual is at most the larger of
tol1 and tol2 times the noise of its step; published tol1 = 0.01, tol2 = 0.05, lambda = 0.001 for
latents of 4096 numbers, here scaled with the number of elements, and tol1 = tol2 / 5 throughout.
New points of a window copy its last one.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from round_paths import Path


def _order_k(
    x: Tensor, eps: Tensor, a: Tensor, b: Tensor, added: Tensor, order: int
) -> tuple[Tensor, Tensor]:
    # F of orders 1 and k for the points after x [L, D], whose first is final
    one = a[:, None] * x + b[:, None] * eps + added
    high = one
    # F of order k + 1 hands F of order k of the point before through a step
    for _ in range(min(order, len(x)) - 1):
        before = torch.cat([x[:1], high[:-1]])
        high = a[:, None] * before + b[:, None] * eps + added
    return one, high


def _accelerated(x: list[Tensor], r: list[Tensor], open_from: int, ridge: float) -> Tensor:
    # what is taken off x + R for the points [L, D] of the last iterate
    dx = torch.stack([new - old for old, new in pairwise(x)])
    dr = torch.stack([new - old for old, new in pairwise(r)])
    # a pair that a point lacks is NaN there, and so is the change
    known = dx.isfinite().all(2) & dr.isfinite().all(2)
    dx, dr = dx.where(known[..., None], 0.0), dr.where(known[..., None], 0.0)
    gram = torch.einsum("pld,qld->lpq", dr, dr).cumsum(0)
    right = torch.einsum("pld,ld->lp", dr, r[-1]).cumsum(0)
    gram = gram + ridge * torch.eye(len(dx), dtype=gram.dtype)
    g = torch.linalg.solve(gram, right)
    take = torch.einsum("pld,lp->ld", dx + dr, g)
    take[: open_from + 1] = 0.0
    return take


def parataa(
    path: Path, window: int, tolerance: float, *, memory: int = 3, order: int = 8
) -> tuple[Tensor, int, int]:
    """Sample [*shape], rounds and evaluations; `tolerance` is tol2, `memory` 1 is plain."""
    table, n = path.problem.table, path.num_nodes
    alpha, sigma = table.alpha[:-1], table.sigma[:-1]
    a = table.A_x0[:, 0] + table.B_x0[:, 0] / alpha
    b = -table.B_x0[:, 0] * sigma / alpha
    added = table.C[:, None] * path.noise.flatten(1)
    x = path.start.flatten().expand(n + 1, -1).clone()
    ridge = 1e-3 * x.shape[1] / 4096
    close = torch.maximum(
        torch.full((n,), tolerance / 5, dtype=x.dtype), tolerance * table.error_scale[:-1]
    )
    # iterates and residuals of the last rounds over all points, NaN where a point had none
    kept_x: list[Tensor] = []
    kept_r: list[Tensor] = []
    begin, rounds, evaluations = 0, 0, 0
    while begin < n:
        end = min(begin + window, n)
        nodes = torch.arange(begin, end)
        points = x[begin:end]
        x0 = path.x0(points.view(-1, *path.start.shape), nodes).flatten(1)
        eps = (points - alpha[nodes, None] * x0) / sigma[nodes, None]
        one, high = _order_k(points, eps, a[nodes], b[nodes], added[nodes], order)
        old = x[begin + 1 : end + 1].clone()
        is_open = ~((one - old).square().mean(1).sqrt() <= close[nodes])
        first = int(is_open.int().argmax()) if bool(is_open.any()) else end - begin - 1
        for kept, value in ((kept_x, old), (kept_r, high - old)):
            kept.append(torch.full_like(x, torch.nan))
            kept[-1][begin + 1 : end + 1] = value
            del kept[:-memory]
        x[begin + 1 : end + 1] = high
        if len(kept_x) > 1:
            last_x, last_r = ([v[begin + 1 : end + 1] for v in k] for k in (kept_x, kept_r))
            x[begin + 1 : end + 1] -= _accelerated(last_x, last_r, first, ridge)
        x[end + 1 :] = x[end]
        rounds, evaluations, begin = rounds + 1, evaluations + len(nodes), begin + first + 1
    return x[n].view(path.start.shape), rounds, evaluations
