"""Sampling that begins with a similar trajectory."""

from __future__ import annotations

import re

import pytest
import torch

from ctd_engine import ParallelSampler, SequentialSampler
from ctd_engine._coefficients import METHODS
from ctd_engine.exact import MixtureModel
from small_problems import IDS, PROBLEMS, SHAPE, mixture, table_of

NUM_STEPS, NUM_SAMPLES = 12, 3


def samplers(table, **options):
    model = mixture(table)
    shared = dict(shape=SHAPE, solver=table, dtype=torch.float64)
    return SequentialSampler(model, **shared), ParallelSampler(model, **shared, **options)


def some_trajectory(table):
    generator = torch.Generator().manual_seed(7)
    sizes = (NUM_SAMPLES, table.num_nodes + 1, *SHAPE)
    return torch.randn(*sizes, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_any_trajectory_leads_to_the_sequential_samples(problem, method):
    table = table_of(problem, NUM_STEPS)
    sequential, parallel = samplers(table, window_size=5, tolerance=0.0, method=method)
    want = sequential.sample(NUM_SAMPLES, seed=3).samples
    result = parallel.sample(NUM_SAMPLES, seed=3, x_trajectory=some_trajectory(table))
    assert (result.samples - want).abs().max() <= 1e-9
    assert result.stats.rounds <= table.num_nodes


def test_window_1_is_bitwise_equal():
    table = table_of(PROBLEMS[0], NUM_STEPS)
    sequential, parallel = samplers(table, window_size=1)
    want = sequential.sample(NUM_SAMPLES, seed=3).samples
    got = parallel.sample(NUM_SAMPLES, seed=3, x_trajectory=some_trajectory(table)).samples
    assert torch.equal(got, want)


@pytest.mark.parametrize("window_size", [7, 60])
def test_its_own_trajectory_is_found_to_be_right(window_size):
    """Windows are accepted whole; the last nodes, without noise and tolerance, take a round each"""
    table = table_of(PROBLEMS[0], 60)
    _, exact = samplers(table, window_size=window_size, tolerance=0.0)
    _, sampler = samplers(table, window_size=window_size, tolerance=1e-3)
    first = exact.sample(NUM_SAMPLES, seed=3, keep_trajectory=True)
    again = sampler.sample(NUM_SAMPLES, seed=3, x_trajectory=first.trajectory)
    assert (again.samples - first.samples).abs().max() < 1e-9
    assert again.stats.rounds <= -(-60 // window_size) + 2
    assert first.stats.rounds > again.stats.rounds


def test_a_similar_model_from_another_start_takes_fewer_rounds():
    """Data of other means and an x_init that has moved: what is given is moved along with it."""
    table = table_of(PROBLEMS[0], 60)
    _, sampler = samplers(table, window_size=60, tolerance=0.05)
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(NUM_SAMPLES, *SHAPE, generator=generator).double() for _ in range(2)]
    first = sampler.sample(NUM_SAMPLES, seed=3, x_init=draws[0], keep_trajectory=True)
    x_init = draws[0] + 0.05 * draws[1]
    means = mixture(table)._means + 0.02
    other = ParallelSampler(
        MixtureModel(table, means, 0.3),
        shape=SHAPE,
        solver=table,
        dtype=torch.float64,
        window_size=60,
        tolerance=0.05,
    )
    cold = other.sample(NUM_SAMPLES, seed=3, x_init=x_init)
    warm = other.sample(NUM_SAMPLES, seed=3, x_init=x_init, x_trajectory=first.trajectory)
    assert warm.stats.rounds <= 0.8 * cold.stats.rounds
    assert warm.stats.evaluations <= 0.8 * cold.stats.evaluations
    assert (warm.samples - cold.samples).abs().max() < 0.02


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_guesses_of_its_own_trajectory_are_that_trajectory(problem):
    """Every solver, a window per sample: one node, lag or sample off, and windows stop early."""
    table = table_of(problem, NUM_STEPS)
    # seven rows and three samples: windows of unequal lengths, and one sample waits for a slot
    for max_rows in (7, 15):
        sequential, parallel = samplers(table, window_size=5, tolerance=1e-6, max_rows=max_rows)
        given = sequential.sample(NUM_SAMPLES, seed=3, keep_trajectory=True).trajectory
        result = parallel.sample(NUM_SAMPLES, seed=3, x_trajectory=given)
        assert (result.samples - given[:, -1]).abs().max() <= 1e-9
        # the last nodes have no scale, so that a last bit opens them once more
        assert result.stats.evaluations <= NUM_SAMPLES * (table.num_nodes + 1)


GUESSED = [PROBLEMS[0], ("heun", "karras", "edm", {}), ("dpmpp_sde", "linear_beta", "v", {})]


@pytest.mark.parametrize("problem", GUESSED, ids=str)
def test_guesses_hold_the_predictions_and_the_noise_that_are_given(problem):
    """By hand, from another start: what the model is asked first, a whole window of it."""
    asked = []
    table = table_of(problem, NUM_STEPS)
    exact, nodes = mixture(table), table.num_nodes

    def model(x, t):
        asked.append((x, exact(x, t)))
        return asked[-1][1]

    shared = dict(shape=SHAPE, solver=table, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(nodes, 1, *SHAPE, generator=generator, dtype=torch.float64)
    first = SequentialSampler(model, **shared).sample(1, seed=3, noise=z, keep_trajectory=True)
    path = first.trajectory[0]
    x0 = [table.P[i] * path[i] + table.Q[i] * m[0] for i, (_, m) in enumerate(asked)]
    asked.clear()
    x = [torch.full(SHAPE, 0.5, dtype=torch.float64)]
    sampler = ParallelSampler(model, **shared, window_size=nodes)
    sampler.sample(1, x_init=x[0][None], noise=-z, x_trajectory=path[None])
    inputs = asked[0][0]
    assert len(inputs) == nodes
    for i in range(nodes):
        assert (inputs[i] - table.input_scale[i] * x[i]).abs().max() <= 1e-11
        back = range(min(i + 1, table.order))
        step = sum(table.A_x0[i, k] * x[i - k] + table.B_x0[i, k] * x0[i - k] for k in back)
        x.append(step + table.C[i] * z[i, 0])


def test_more_samples_than_slots_follow_their_own():
    """Two at a time with 8 rows each; the third and later ones take over slots."""
    table = table_of(PROBLEMS[0], 30)
    _, exact = samplers(table, window_size=10, max_rows=16, tolerance=0.0)
    _, sampler = samplers(table, window_size=10, max_rows=16, tolerance=1e-3)
    first = exact.sample(5, seed=3, keep_trajectory=True)
    again = sampler.sample(5, seed=3, x_trajectory=first.trajectory)
    assert (again.samples - first.samples).abs().max() <= 1e-9
    assert (again.stats.rounds_per_sample <= -(-30 // 8) + 2).all()


def test_an_automatic_window():
    table = table_of(PROBLEMS[0], 30)
    _, sampler = samplers(table, window_size="auto", tolerance=0.0)
    first = sampler.sample(5, seed=3, keep_trajectory=True)
    again = sampler.sample(5, seed=3, x_trajectory=first.trajectory)
    assert (again.samples - first.samples).abs().max() <= 1e-9


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([0.0], TypeError, "x_trajectory must be a tensor, got list"),
        (torch.zeros(3, 12, 3, 2), ValueError, "(3, 13, 3, 2) = (num_samples, num_nodes + 1, *sh"),
        (torch.full((3, 13, 3, 2), torch.nan), ValueError, "x_trajectory must be finite"),
    ],
    ids=["list", "shape", "nan"],
)
def test_refuses(given, error, message):
    _, sampler = samplers(table_of(PROBLEMS[0], NUM_STEPS), window_size=4)
    with pytest.raises(error, match=re.escape(message)):
        sampler.sample(NUM_SAMPLES, seed=0, x_trajectory=given)
