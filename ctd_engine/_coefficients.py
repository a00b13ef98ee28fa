"""A table's numbers as a parallel run uses them: cast once, with the slopes of the update."""

from __future__ import annotations

from dataclasses import replace

import torch

from ctd_engine._output_rule import BoundRule, OutputRule
from ctd_engine._table import SolverTable
from ctd_engine.ops.picard_update import Coefficients

__all__ = [
    "METHODS",
    "bound_rule",
    "copying",
    "data_rule",
    "given_x0",
    "picard_slopes",
    "prior",
    "ruled",
    "solver_coefficients",
    "thresholds",
]

METHODS = ("picard", "order_k", "data", "gaussian", "secant")
# of images in [-1, 1], and the sigma_data of EDM (Karras et al. 2022, table 1)
DATA_STD = 0.5


def picard_slopes(table: SolverTable, method: str) -> torch.Tensor:
    """G [N, K] of the Picard update.

    "picard": 1, ParaDiGMS (arXiv 2305.16317, Alg. 1); "order_k": A, the raw recurrence (ParaTAA,
    arXiv 2402.09970); "data": A of the recurrence written in x0; "gaussian": the derivative of the
    step for data N(mean, 0.5² I), whose exact x0 changes by J = 0.25 alpha / (0.25 alpha² + sigma²)
    per change of x: Newton's method there. "secant": 1, which measured slopes replace row by row.
    """
    if method == "order_k":
        return table.A
    if method == "data":
        return table.A_x0
    if method == "gaussian":
        return _gaussian_slopes(table, DATA_STD)
    g = torch.zeros_like(table.A)
    g[:, 0] = 1.0
    return g


def _gaussian_slopes(table: SolverTable, std: float) -> torch.Tensor:
    # the steps' derivatives for data N(mean, std² I)
    alpha, sigma = table.alpha[:-1], table.sigma[:-1]
    j = std**2 * alpha / ((std * alpha).square() + sigma.square())
    # what wraps around before node 0 meets coefficients that are 0 there
    lagged = torch.stack([j.roll(k) for k in range(table.order)], dim=1)
    return table.A_x0 + table.B_x0 * lagged


def solver_coefficients(
    table: SolverTable, method: str, dtype: torch.dtype, device: torch.device
) -> Coefficients:
    """The table cast once, from float64 on the host."""

    def cast(values: torch.Tensor) -> torch.Tensor:
        return values.to(device=device, dtype=dtype)

    return Coefficients(
        A=cast(table.A_x0),
        B=cast(table.B_x0),
        C=cast(table.C),
        G=cast(picard_slopes(table, method)),
        P=cast(table.P),
        Q=cast(table.Q),
        clip=table.clip_x0,
    )


def bound_rule(table: SolverTable, dtype: torch.dtype, device: torch.device) -> BoundRule | None:
    """The table's rule with its numbers cast once; None where all is linear."""
    if table.rule is None:
        return None
    return BoundRule(table.rule, table.P, table.Q, table.C, dtype, device)


def data_rule(table: SolverTable, dtype: torch.dtype, device: torch.device) -> BoundRule:
    """The table's rule, or that which makes x0 of the model's output by P, Q and clip_x0."""
    rule = OutputRule(clip=table.clip_x0) if table.rule is None else table.rule
    return BoundRule(rule, table.P, table.Q, table.C, dtype, device)


def given_x0(c: Coefficients) -> Coefficients:
    """The recurrence that is given x0 as the model's output."""
    return replace(c, P=torch.zeros_like(c.P), Q=torch.ones_like(c.Q), clip=None)


def ruled(c: Coefficients) -> Coefficients:
    """The recurrence that is given x0 as the model's output, and all that is added as noise."""
    return replace(given_x0(c), C=torch.ones_like(c.C))


def prior(table: SolverTable, c: Coefficients) -> Coefficients:
    """The recurrence for data N(0, I), which needs no model: x0 = alpha x / (alpha² + sigma²)."""
    return replace(c, A=_gaussian_slopes(table, 1.0).to(c.A), B=torch.zeros_like(c.B))


def thresholds(table: SolverTable, tolerance: float, *, is_published: bool) -> torch.Tensor:
    """(tolerance scale_i)² [N + 1], the mean squared change that point i is accepted with.

    No noise leaves the last points, and `error_scale` is 0 there: they are judged by the last
    noise that is added, as ParaSolver does. `is_published` keeps the 0 of ParaDiGMS (Alg. 1),
    whose last points are accepted unchanged or as the first open one only.
    """
    scale = table.error_scale.clone()
    noisy = scale.nonzero()
    if not is_published and len(noisy) > 0:
        last = int(noisy[-1])
        scale[last + 1 :] = scale[last]
    return (tolerance * scale).square()


def copying(c: Coefficients) -> Coefficients:
    """The recurrence that repeats its last state: ParaDiGMS's first guess."""
    a = torch.zeros_like(c.A)
    a[:, 0] = 1.0
    return replace(c, A=a, B=torch.zeros_like(c.B), C=torch.zeros_like(c.C))
