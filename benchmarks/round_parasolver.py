"""ParaSolver's scheme (Lu, Zhu and Hou, ICLR 2025), one step per subinterval as it was published.

M steps are made in a row; their last x0 is held to guess every later point of the window. A round
is ParaDiGMS's: the sum of the steps' changes added to the window's first point, points judged by
tolerance times the noise of the step that leaves them, the last two by that of step N - 2. New
points of a window are guessed from the last x0 of the window. Windows begin after the M steps,
which are exact; the published code evaluates these points again, so that the count here is lower.
"""

from __future__ import annotations

import torch
from torch import Tensor

from round_paths import Path


def parasolver(
    path: Path, window: int, tolerance: float, *, num_first: int = 5
) -> tuple[Tensor, int, int]:
    """Sample [*shape], rounds and evaluations; `num_first` is M, 1 or more."""
    n = path.num_nodes
    num_first = min(max(num_first, 1), n)
    x = path.start.expand(n + 1, *path.start.shape).clone()
    for node in range(num_first):
        nodes = torch.tensor([node])
        x0 = path.x0(x[node][None], nodes)
        x[node + 1] = path.step(x[node][None], x0, nodes)[0]
    begin, rounds, evaluations = num_first, num_first, num_first
    end = min(begin + window, n)
    x[begin + 1 : end + 1] = path.hold(x[begin], x0[-1], begin, end)
    scale = path.problem.table.error_scale.clone()
    scale[-2:] = scale[max(n - 2, 0)]
    while begin < n:
        nodes = torch.arange(begin, end)
        old = x[begin : end + 1].clone()
        x0 = path.x0(old[:-1], nodes)
        change = path.step(old[:-1], x0, nodes) - old[:-1]
        x[begin + 1 : end + 1] = old[0] + change.cumsum(0)
        error = (x[begin + 1 : end + 1] - old[1:]).flatten(1).square().mean(1)
        is_open = ~(error <= (tolerance * scale[begin + 1 : end + 1]).square())
        moved = int(is_open.int().argmax()) + 1 if bool(is_open.any()) else end - begin
        rounds, evaluations = rounds + 1, evaluations + len(nodes)
        begin, last = begin + moved, end
        end = min(begin + window, n)
        x[last + 1 : end + 1] = path.hold(x[last], x0[-1], last, end)
    return x[n], rounds, evaluations
