"""Solvers as tables: one short function each, written with the data prediction x0.

Letters: alpha_t, sigma_t at the node that a step leaves and alpha_s, sigma_s at the one it reaches;
sigma/alpha is the noise level of the "variance exploding" coordinate x / alpha, in which the
probability flow has the simplest form; h = lambda_s - lambda_t with lambda = log(alpha / sigma).
`fold` then writes the recurrence in the model's raw output.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ctd_engine import _checks
from ctd_engine._fold import ModelOptions, ends, fold, posterior_std
from ctd_engine._table import SolverTable
from ctd_engine.schedules import Grid, Schedule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "SOLVERS",
    "ModelOptions",
    "SolverTable",
    "build",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "flow_euler",
    "get",
    "heun",
]


def _one_step(eps_scale: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    # x_s = alpha_s x0 + eps_scale eps + ..., with eps = (x_t - alpha_t x0) / sigma_t
    alpha_t, sigma_t, alpha_s, _ = ends(grid)
    a = eps_scale / sigma_t
    return a[:, None], (alpha_s - a * alpha_t)[:, None]


def ddim(
    schedule: Schedule, num_steps: int | Grid, *, eta: float = 0.0, **options: Unpack[ModelOptions]
) -> SolverTable:
    """DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12), for any schedule.

    x_s = alpha_s x0 + sqrt(sigma_s² - v²) eps + v z with v = eta times the DDPM posterior's
    standard deviation (eq. 16).

    Args:
        schedule, num_steps: the grid of nodes; a `Grid` in place of a number gives them one by one.
        eta: 0 is the deterministic ODE solver, 1 is DDPM.
        options: see `ModelOptions`.

    Raises:
        ValueError: an argument is out of range or does not fit the schedule.
    """
    eta = _checks.require_float("eta", eta, minimum=0.0)
    if eta > 1.0:
        raise ValueError(f"eta must be in [0, 1], got {eta:g}")
    grid = schedule.grid(num_steps)
    v = eta * posterior_std(grid)
    a, b = _one_step((grid.sigma[1:].square() - v.square()).clamp(min=0.0).sqrt(), grid)
    return fold("ddim", schedule, grid, a, b, v, **options)


def ddpm(
    schedule: Schedule, num_steps: int | Grid, *, variance: str = "fixed_small", **options: Any
) -> SolverTable:
    """Ancestral sampling of DDPM (Ho et al. 2020, arXiv 2006.11239, Alg. 2 and eq. 7).

    The mean of q(x_s | x_t, x0) plus noise of the posterior's variance ("fixed_small") or of the
    forward step's variance beta ("fixed_large", none at the last step). Further arguments as
    `ddim`.
    """
    _checks.require_choice("variance", variance, ("fixed_small", "fixed_large"))
    table = ddim(schedule, num_steps, eta=1.0, **options)
    c = table.C
    if variance == "fixed_large":
        alpha_t, sigma_t = table.alpha[:-1], table.sigma[:-1]
        alpha_s, sigma_s = table.alpha[1:], table.sigma[1:]
        beta = (sigma_t.square() - (alpha_t / alpha_s * sigma_s).square()).clamp(min=0.0)
        c = torch.where(sigma_s > 0, beta.sqrt(), 0.0)
    return replace(table, name="ddpm", C=c)


def euler(
    schedule: Schedule, num_steps: int | Grid, **options: Unpack[ModelOptions]
) -> SolverTable:
    """Euler's method for the probability flow in x / alpha (Karras et al. 2022, Alg. 1, line 5).

    d = (x - x0) / sigma per unit of sigma; the same numbers as DDIM with eta = 0. Arguments as
    `ddim`, without eta.
    """
    return replace(ddim(schedule, num_steps, eta=0.0, **options), name="euler")


def euler_ancestral(
    schedule: Schedule, num_steps: int | Grid, *, eta: float = 1.0, **options: Unpack[ModelOptions]
) -> SolverTable:
    """Euler steps to a lower noise level, then noise up again (k-diffusion's ancestral Euler).

    In x / alpha with levels s_t > s_s: s_up = min(s_s, eta sqrt(s_s² (s_t² - s_s²) / s_t²)),
    s_down = sqrt(s_s² - s_up²). With eta = 1 the law of a step is DDPM's. Arguments as `ddim`.
    """
    eta = _checks.require_float("eta", eta, minimum=0.0)
    grid = schedule.grid(num_steps)
    v = torch.minimum(eta * posterior_std(grid), grid.sigma[1:])
    a, b = _one_step((grid.sigma[1:].square() - v.square()).clamp(min=0.0).sqrt(), grid)
    return fold("euler_ancestral", schedule, grid, a, b, v, **options)


def heun(schedule: Schedule, num_steps: int | Grid, **options: Unpack[ModelOptions]) -> SolverTable:
    """Heun's second-order method in x / alpha (Karras et al. 2022, arXiv 2206.00364, Alg. 1).

    Node 2i is the state of step i, node 2i + 1 its Euler prediction at the next level, from which
    node 2i + 2 follows with the mean of both slopes; the last step, to sigma = 0, is Euler's. So
    N = 2 num_steps - 1 nodes. Arguments and errors as `ddim`, without eta; alpha = 0 at the first
    node and noise at the last one are errors, too.
    """
    grid = schedule.grid(num_steps)
    if bool((grid.alpha[:-1] == 0).any()):
        raise ValueError(
            'solver "heun" works in x / alpha and needs alpha > 0 at its first node, got 0; use '
            'a schedule with finite log-SNR, or "flow_euler"'
        )
    if float(grid.sigma[-1]) != 0.0:
        raise ValueError(
            'solver "heun" ends with sigma = 0: append a node without noise to the grid, whose '
            f"last sigma is {float(grid.sigma[-1]):g}"
        )
    num_steps = grid.num_steps
    stages = torch.arange(num_steps).repeat_interleave(2)[:-1]
    # node 2i + 1 lies at the level of node 2i + 2
    nodes = (torch.arange(2 * num_steps - 1) + 1) // 2
    level = grid.sigma / grid.alpha
    a = torch.zeros(len(nodes), 2, dtype=torch.float64)
    b = torch.zeros_like(a)
    for i in range(num_steps):
        s_t, s_s = level[i], level[i + 1]
        alpha_t, alpha_s = grid.alpha[i], grid.alpha[i + 1]
        # Euler: y_s = y_t + (s_s - s_t) (y_t - x0) / s_t with y = x / alpha
        a[2 * i, 0] = s_s / s_t * alpha_s / alpha_t
        b[2 * i, 0] = (1.0 - s_s / s_t) * alpha_s
        if i + 1 == num_steps:
            break
        # y_s = y_t + (s_s - s_t)/2 ((y_t - x0_t) / s_t + (y~ - x0~) / s_s)
        half = 0.5 * (s_s - s_t)
        a[2 * i + 1, 0] = half / s_s
        b[2 * i + 1, 0] = -half / s_s * alpha_s
        a[2 * i + 1, 1] = (1.0 + half / s_t) * alpha_s / alpha_t
        b[2 * i + 1, 1] = -half / s_t * alpha_s
    ends = torch.cat([nodes, torch.tensor([num_steps])])
    at_nodes = Grid(grid.alpha[ends], grid.sigma[ends], grid.logsnr[ends], grid.time[nodes])
    # both nodes of a step are judged by the step's own noise
    scale = torch.cat([posterior_std(grid)[stages], torch.zeros(1, dtype=torch.float64)])
    return fold(
        "heun",
        schedule,
        at_nodes,
        a,
        b,
        torch.zeros(len(nodes), dtype=torch.float64),
        **options,
        error_scale=scale,
        num_steps=num_steps,
    )


def _multistep(grid: Grid, order: int, *, stochastic: bool) -> tuple[Tensor, Tensor, Tensor]:
    """DPM-Solver++ with data prediction: coefficients a, b [N, 2] and c [N].

    D = x0_i + (x0_i - x0_{i-1}) / (2 r_i), r_i = h_{i-1} / h_i; first order at the first step and
    at the last, where h is infinite.
    """
    _, sigma_t, alpha_s, sigma_s = ends(grid)
    h = 0.5 * (grid.logsnr[1:] - grid.logsnr[:-1])  # +inf at the last step
    decay = torch.exp(-h)  # 0 at the last step
    if stochastic:
        a = sigma_s / sigma_t * decay
        gain = alpha_s * -torch.expm1(-2.0 * h)
        c = sigma_s * torch.sqrt(-torch.expm1(-2.0 * h))
    else:
        a = sigma_s / sigma_t
        gain = alpha_s * -torch.expm1(-h)
        c = torch.zeros_like(a)
    num_steps = len(h)
    coefficients_a = torch.zeros(num_steps, order, dtype=torch.float64)
    coefficients_b = torch.zeros_like(coefficients_a)
    coefficients_a[:, 0] = a
    coefficients_b[:, 0] = gain
    if order == 2:
        for i in range(1, num_steps - 1):
            if not torch.isfinite(h[i - 1]):
                continue
            half_inverse_r = 0.5 * h[i] / h[i - 1]
            coefficients_b[i, 0] = gain[i] * (1.0 + half_inverse_r)
            coefficients_b[i, 1] = -gain[i] * half_inverse_r
    return coefficients_a, coefficients_b, c


def dpmpp_2m(
    schedule: Schedule, num_steps: int | Grid, *, order: int = 2, **options: Unpack[ModelOptions]
) -> SolverTable:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, Alg. 2).

    x_s = (sigma_s / sigma_t) x_t - alpha_s (e^{-h} - 1) D. `order=1` is DPM-Solver++(1), which is
    DDIM. Other arguments as `ddim`, without eta.
    """
    return _dpmpp("dpmpp_2m", schedule, num_steps, order, False, **options)


def dpmpp_sde(
    schedule: Schedule, num_steps: int | Grid, *, order: int = 2, **options: Unpack[ModelOptions]
) -> SolverTable:
    """SDE form of DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, section 6).

    x_s = (sigma_s / sigma_t) e^{-h} x_t + alpha_s (1 - e^{-2h}) D + sigma_s sqrt(1 - e^{-2h}) z.
    `order=1` is DDIM with eta = 1. Other arguments as `ddim`, without eta.
    """
    return _dpmpp("dpmpp_sde", schedule, num_steps, order, True, **options)


def _dpmpp(
    name: str,
    schedule: Schedule,
    num_steps: int | Grid,
    order: int,
    stochastic: bool,
    **options: Unpack[ModelOptions],
) -> SolverTable:
    if _checks.require_int("order", order) not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order}")
    grid = schedule.grid(num_steps)
    a, b, c = _multistep(grid, order, stochastic=stochastic)
    return fold(name, schedule, grid, a, b, c, **options)


def flow_euler(
    schedule: Schedule, num_steps: int | Grid, **options: Unpack[ModelOptions]
) -> SolverTable:
    """Euler's method for rectified flow, x_s = x_t + (s - t) v (Liu et al. 2022, 2209.03003).

    v = eps - x0 = (x_t - x0) / t on x_t = (1 - t) x0 + t eps. Arguments and errors as `ddim`,
    without eta; a schedule of another kind than "flow" is an error, too.
    """
    if schedule.kind != "flow":
        raise ValueError(
            f'solver "flow_euler" needs a schedule of kind "flow", got "{schedule.name}" of kind '
            f'"{schedule.kind}"; use "euler" or "ddim" there'
        )
    options.setdefault("prediction", "flow")
    grid = schedule.grid(num_steps)
    a, b = _one_step(grid.sigma[1:], grid)
    c = torch.zeros(grid.num_steps, dtype=torch.float64)
    return fold("flow_euler", schedule, grid, a, b, c, **options)


SOLVERS: dict[str, Callable[..., SolverTable]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_sde": dpmpp_sde,
    "flow_euler": flow_euler,
}


def get(name: str) -> Callable[..., SolverTable]:
    """The function of this module that makes the named solver's table; ValueError for others."""
    return SOLVERS[_checks.require_choice("solver", name, tuple(SOLVERS))]


def build(
    solver: str, schedule: Schedule, num_steps: int | Grid, **options: Unpack[ModelOptions]
) -> SolverTable:
    """The named solver's table.

    Raises:
        ValueError: an unknown name, or an option that the solver does not have.
    """
    solver_fn = get(solver)
    parameters = inspect.signature(solver_fn).parameters.values()
    own = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    known = own | ModelOptions.__annotations__.keys()
    unknown = sorted(options.keys() - known)
    if unknown:
        raise ValueError(f'solver "{solver}" does not take {unknown}; it takes {sorted(known)}')
    return solver_fn(schedule, num_steps, **options)
