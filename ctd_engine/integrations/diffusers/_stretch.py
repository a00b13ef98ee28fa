"""A stretch of a solver's nodes, taken up where another left off."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ctd_engine._coefficients import bound_rule
from ctd_engine._table import SolverTable
from ctd_engine.ops.picard_update.reference import data_prediction

__all__ = ["cut", "data_estimate", "looking_back"]


def cut(table: SolverTable, first: int, last: int, *, adds_noise: bool) -> SolverTable:
    """Nodes `first` to `last` of a table, which begin without a past.

    With `adds_noise` the noise z of every step is added as it is given.
    """
    steps, ends = slice(first, last), slice(first, last + 1)
    n = table.num_nodes

    def part(value: object) -> object:
        if not isinstance(value, Tensor) or len(value) not in (n, n + 1):
            return value
        return value[steps if len(value) == n else ends]

    changes: dict[str, Any] = {f.name: part(getattr(table, f.name)) for f in fields(table)}
    if table.rule is not None:
        rule = table.rule
        parts: dict[str, Any] = {f.name: part(getattr(rule, f.name)) for f in fields(rule)}
        changes["rule"] = replace(rule, **parts)
    for name in ("A", "B"):
        # entry (i, k) reaches back to node i - k
        changes[name] = changes[name].tril()
    if adds_noise:
        changes["C"] = torch.ones_like(table.C[steps])
    return replace(table, **{**changes, "num_steps": last - first})


def data_estimate(table: SolverTable, node: int, x: Tensor, m: Tensor) -> Tensor:
    """x0 of states x [S, D] at a node, from the model's outputs m [S, D]."""
    nodes = torch.full((len(x),), node, device=x.device)
    rule = bound_rule(table, x.dtype, x.device)
    if rule is not None:
        z = torch.zeros_like(x) if table.is_stochastic else None
        return rule(x, m, None, 1.0, nodes, z)[0]
    p, q = (values.to(x.device, x.dtype)[nodes] for values in (table.P, table.Q))
    return data_prediction(x, m.to(x.dtype), p, q, table.clip_x0)


def looking_back(
    table: SolverTable, first: int, past: dict[int, tuple[Tensor, Tensor]], like: Tensor
) -> Tensor:
    """What nodes before `first` add to the steps from it, [K - 1, *like's shape].

    past: x and x0 of the nodes first - K + 1 to first - 1.

    Raises:
        ValueError: a node is missing.
    """
    out = like.new_zeros(table.order - 1, *like.shape)
    for step in range(min(table.order - 1, table.num_nodes - first)):
        for k in range(step + 1, table.order):
            a, b = float(table.A_x0[first + step, k]), float(table.B_x0[first + step, k])
            if a == 0.0 and b == 0.0:
                continue
            if first + step - k not in past:
                raise ValueError(
                    f"step {first} of solver {table.name!r} needs the steps before it, which this "
                    "pipeline did not take; a pipeline that begins in the middle of its timesteps "
                    "needs a scheduler of one step, such as DDIMScheduler or EulerDiscreteScheduler"
                )
            x, x0 = past[first + step - k]
            out[step] += a * x + b * x0
    return out
