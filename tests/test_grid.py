"""Nodes given one by one instead of a number of steps."""

from __future__ import annotations

import math

import pytest
import torch

from ctd_engine import schedules, solvers


def test_given_nodes_are_the_grid() -> None:
    schedule = schedules.linear_beta()
    usual = schedule.grid(20)
    given = schedules.Grid.from_levels(usual.alpha, usual.sigma, usual.time)
    for solver in ("ddim", "ddpm", "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_sde"):
        expected = solvers.build(solver, schedule, 20)
        table = solvers.build(solver, schedule, given)
        assert table.num_steps == 20
        for name in ("A", "B", "C", "P", "Q", "model_time", "error_scale"):
            torch.testing.assert_close(getattr(table, name), getattr(expected, name))


def test_a_grid_may_end_with_noise() -> None:
    """One DDIM step from level 2 to level 1 of a Gaussian of no width: x0 stays, noise halves."""
    grid = schedules.Grid.from_levels([1.0, 1.0], [2.0, 1.0], [2.0])
    table = solvers.ddim(schedules.karras(), grid, prediction="x0")
    assert table.A.tolist() == [[0.5]]
    assert table.B.tolist() == [[0.5]]
    with pytest.raises(ValueError, match="ends with sigma = 0"):
        solvers.heun(schedules.karras(), grid)


@pytest.mark.parametrize(
    "levels, message",
    [
        (([1.0], [1.0], []), "one entry more than time"),
        (([1.0, 1.0], [1.0], [1.0]), "sigma must have one entry more"),
        (([1.0, 1.0], [1.0, 1.0], [1.0]), "fall strictly"),
        (([1.0, 1.0], [1.0, -1.0], [1.0]), "not be negative"),
        (([1.0, math.nan], [1.0, 0.0], [1.0]), "alpha must be finite, it holds NaN"),
        (([[1.0]], [1.0, 0.0], [1.0]), r"alpha must be a list of numbers, got shape \(1, 1\)"),
    ],
)
def test_grid_rejects(levels: tuple[list[float], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedules.Grid.from_levels(*levels)


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("kind", ["vp", "ve", "flow"])
def test_nodes_must_be_of_the_schedules_kind(kind: str, solver: str) -> None:
    """With levels of another kind the start would have another scale than the first node."""
    kinds = {
        "vp": (schedules.linear_beta(), ([0.6, 0.8, 1.0], [0.8, 0.6, 0.0])),
        "ve": (schedules.karras(), ([1.0, 1.0, 1.0], [10.0, 5.0, 0.0])),
        "flow": (schedules.flow(), ([0.2, 0.5, 1.0], [0.8, 0.5, 0.0])),
    }
    schedule, _ = kinds[kind]
    for other, (_, (alpha, sigma)) in kinds.items():
        # as another library keeps them
        levels = torch.tensor(alpha), torch.tensor(sigma), [999.0, 500.0]
        grid = schedules.Grid.from_levels(*levels)
        if other == kind:
            assert solvers.build(solver, schedule, grid).num_steps == 2
            continue
        with pytest.raises(ValueError, match=rf'kind "{kind}" has alpha.* at node \d'):
            solvers.build(solver, schedule, grid)
