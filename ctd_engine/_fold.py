"""From a recurrence in x0 to a solver table: what every solver of `solvers.py` has in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from ctd_engine._table import SolverTable
from ctd_engine.parametrization import check_prediction, data_coefficients, model_time
from ctd_engine.schedules import Grid, Schedule

__all__ = ["ModelOptions", "banded", "ends", "fold", "posterior_std", "raw_coefficients"]


class ModelOptions(TypedDict, total=False):
    """What every solver is told about the model.

    prediction: what it returns: "epsilon" (default), "x0", "v", "flow" or "edm".
    time: its time input: None (the schedule's own; c_noise for "edm"), "timestep", "index" (the
        nearest whole timestep, as a float), "logsnr", "sigma" (= sigma / alpha), "c_noise"
        (= log(sigma / alpha) / 4) or "flow".
    clip_x0: clip the data prediction to [-clip_x0, clip_x0]; None (default) does not.
    sigma_data: standard deviation of the data, for "edm" (default 0.5).
    """

    prediction: str
    time: str | None
    clip_x0: float | None
    sigma_data: float


def banded(a: list[Sequence[float]], b: list[Sequence[float]]) -> tuple[Tensor, Tensor]:
    """A and B [N, K], of rows that are filled up with 0."""
    order = max(map(len, (*a, *b)))
    filled = ([[*row, *[0.0] * (order - len(row))] for row in rows] for rows in (a, b))
    first, second = (torch.tensor(rows, dtype=torch.float64) for rows in filled)
    return first, second


def ends(grid: Grid) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return grid.alpha[:-1], grid.sigma[:-1], grid.alpha[1:], grid.sigma[1:]


def posterior_std(grid: Grid) -> Tensor:
    """Standard deviation [N] of q(x_s | x_t, x0), DDPM (arXiv 2006.11239) eq. 7 for any alpha.

    sigma_s² / sigma_t² (sigma_t² - (alpha_t / alpha_s)² sigma_s²), 0 at the last step.
    """
    alpha_t, sigma_t, alpha_s, sigma_s = ends(grid)
    ratio = alpha_t / alpha_s
    kept = (sigma_t.square() - (ratio * sigma_s).square()).clamp(min=0.0)
    return sigma_s / sigma_t * kept.sqrt()


def raw_coefficients(a: Tensor, b: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """A and B [N, K] of the model's raw output from a, b of a recurrence in x0 = p x + q m."""
    raw_a, raw_b = a.clone(), torch.zeros_like(b)
    for k in range(min(a.shape[1], len(p))):
        raw_a[k:, k] += b[k:, k] * p[: len(p) - k]
        raw_b[k:, k] = b[k:, k] * q[: len(q) - k]
    return raw_a, raw_b


def fold(
    name: str,
    schedule: Schedule,
    grid: Grid,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    error_scale: Tensor | None = None,
    num_steps: int | None = None,
    prediction: str = "epsilon",
    time: str | None = None,
    clip_x0: float | None = None,
    sigma_data: float = 0.5,
) -> SolverTable:
    """Write a recurrence in x0, with a, b [N, K] and c [N], in the model's raw output.

    `num_steps` is the user's count where a step has more than one node.
    """
    check_prediction(prediction, schedule)
    p, q, input_scale = data_coefficients(prediction, grid.alpha[:-1], grid.sigma[:-1], sigma_data)
    if time is None and prediction != "edm":
        times = grid.time
    else:
        times = model_time(time, schedule, prediction, grid.logsnr[:-1]).double()
    raw_a, raw_b = raw_coefficients(a, b, p, q)
    if error_scale is None:
        error_scale = torch.cat([posterior_std(grid), torch.zeros(1, dtype=torch.float64)])
    return SolverTable(
        name=name,
        prediction=prediction,
        num_steps=grid.num_steps if num_steps is None else num_steps,
        A=raw_a,
        B=raw_b,
        C=c,
        P=p,
        Q=q,
        input_scale=input_scale,
        model_time=times,
        error_scale=error_scale,
        # pure noise of the level of node 0; what is left of the data there is ignored, as usual
        initial_scale=1.0 if schedule.kind == "vp" else float(grid.sigma[0]),
        alpha=grid.alpha,
        sigma=grid.sigma,
        clip_x0=clip_x0,
    )
