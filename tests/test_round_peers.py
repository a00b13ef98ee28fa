"""The peers' schemes: they end at the sequential sample, within the rounds that they promise."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from ctd_engine.exact import MixtureModel
from round_parasolver import parasolver
from round_parataa import parataa
from round_paths import run
from round_problems import Problem, make
from round_srds import srds

SCHEMES = {
    "ParaTAA": parataa,
    "ParaTAA, memory 5, order 3": partial(parataa, memory=5, order=3),
    "fixed point": partial(parataa, memory=1, order=1),
    "ParaSolver": parasolver,
    "ParaSolver, 1 first": partial(parasolver, num_first=1),
    "SRDS": srds,
}
N = 18


def _error(cost, problem):
    return float((cost.samples - problem.sequential(len(cost.samples), seed=0)).abs().max())


@pytest.mark.parametrize("window", [N, 5])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("title", [t for t in SCHEMES if t != "SRDS"])
def test_windowed_schemes_are_exact_at_tolerance_0(title, eta, window):
    problem = make("mixture 2", N, eta)
    cost = run(SCHEMES[title], problem, window, 0.0, 3, seed=0)
    assert _error(cost, problem) <= 1e-11
    assert (cost.rounds <= N).all()
    assert (cost.evaluations >= N).all()


@pytest.mark.parametrize("title", [t for t in SCHEMES if t != "SRDS"])
def test_a_tolerance_saves_rounds_and_leaves_a_small_error(title):
    problem = make("mixture 2", 40, 0.0)
    cost = run(SCHEMES[title], problem, 40, 0.02, 3, seed=0)
    assert (cost.rounds < 40).all()
    assert 0 < _error(cost, problem) < 0.05


@pytest.mark.parametrize("title", [t for t in SCHEMES if t != "SRDS"])
def test_a_window_of_one_point_is_the_sequential_solver(title):
    problem = make("digits 0.1", 12, 1.0)
    cost = run(SCHEMES[title], problem, 1, 0.1, 2, seed=0)
    assert _error(cost, problem) <= 1e-11
    assert cost.rounds.tolist() == cost.evaluations.tolist() == [12, 12]


@pytest.mark.parametrize("num_nodes", [16, 18])
def test_srds_is_exact_after_as_many_iterations_as_blocks(num_nodes):
    """With tolerance 0 no iteration is spared: then every step was a round, in pipelined time."""
    problem = make("mixture 2", num_nodes, 0.0)
    cost = run(srds, problem, 0, 0.0, 3, seed=0)
    assert _error(cost, problem) <= 1e-12
    assert (cost.rounds <= num_nodes).all()


def test_srds_counts_pipelined_rounds_and_all_evaluations():
    """One iteration on 16 steps: 4 + 3 rounds; 4 coarse, 16 fine and 3 coarse evaluations."""
    problem = make("mixture 2", 16, 0.0)
    cost = run(srds, problem, 0, 1e9, 2, seed=0)
    assert cost.rounds.tolist() == [7, 7]
    assert cost.evaluations.tolist() == [23, 23]
    with pytest.raises(ValueError, match="eta = 0"):
        run(srds, make("mixture 2", 16, 1.0), 0, 0.1, 1, seed=0)


def test_srds_corrects():
    """The error left falls with every iteration; the coarse solve alone is far off."""
    problem = make("digits 0.1", 36, 0.0)
    errors = [_error(run(srds, problem, 0, t, 2, seed=0), problem) for t in (1e9, 0.01, 1e-6)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_anderson_acceleration_solves_a_linear_problem_early():
    """x0 of one component is linear in x; a safeguard alone does not slow that down."""
    table = make("mixture 2", 30, 0.0).table
    means = torch.tensor([[0.7, -0.2]], dtype=torch.float64)
    problem = Problem(MixtureModel(table, means, 0.3), table, (2,))
    rounds = {}
    for memory in (1, 3):
        cost = run(partial(parataa, memory=memory), problem, 30, 1e-4, 3, seed=0)
        rounds[memory] = float(cost.rounds.double().mean())
        assert _error(cost, problem) <= 1e-3
    assert rounds[3] < rounds[1]


def test_the_orders_of_parataa_have_one_solution_and_the_full_order_is_a_scan():
    """Order N from a constant x0 is the solver itself: the second round changes nothing."""
    table = make("mixture 2", 30, 0.0).table
    problem = Problem(MixtureModel(table, torch.zeros(1, 2).double(), 0.0), table, (2,))
    cost = run(partial(parataa, memory=1, order=30), problem, 30, 0.0, 2, seed=0)
    assert _error(cost, problem) <= 1e-12
    loose = run(partial(parataa, memory=1, order=30), problem, 30, 1e-6, 2, seed=0)
    assert loose.rounds.max() < 30


def test_networks_with_labels_run():
    problem = make("checkpoint", 12, 1.0)
    for scheme in (parataa, parasolver):
        cost = run(scheme, problem, 12, 0.0, 2, seed=0)
        assert math.isfinite(_error(cost, problem))
        assert _error(cost, problem) <= 1e-4
