"""What sets the methods and first guesses apart, beyond that all give the sequential result."""

from __future__ import annotations

import pytest
import torch

from ctd_engine import ParallelSampler, SequentialSampler
from ctd_engine._coefficients import DATA_STD, picard_slopes
from ctd_engine.exact import MixtureModel
from small_problems import IDS, PROBLEMS, SHAPE, table_of

NUM_STEPS = 20


def run(table, std, **options):
    """Data N(0.7, std² I): how far the samples are from the sequential ones, and the statistics."""
    model = MixtureModel(table, torch.full((1, 6), 0.7, dtype=torch.float64), std)
    shared = dict(shape=SHAPE, solver=table, dtype=torch.float64)
    oracle = SequentialSampler(model, **shared).sample(3, seed=4).samples
    options = {"window_size": table.num_nodes, "tolerance": 1e-6, **options}
    result = ParallelSampler(model, **shared, **options).sample(3, seed=4)
    assert result.all_converged
    return (result.samples - oracle).abs().max(), result.stats


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_gaussian_is_newton_on_gaussian_data(problem):
    """Two rounds make the whole trajectory, one finds it unchanged, one is the last node's."""
    table = table_of(problem, NUM_STEPS)
    error, stats = run(table, DATA_STD, method="gaussian")
    assert error <= 1e-9
    assert stats.rounds <= 4
    # data of another width need more: the slope matters
    assert run(table, 0.2 * DATA_STD, method="gaussian")[1].rounds > 4


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_gaussian_slope_is_the_steps_derivative(problem):
    """G_i d is how a step answers to changes d of the states that it looks back on."""
    table = table_of(problem, NUM_STEPS)
    model = MixtureModel(table, torch.zeros(1, 1, dtype=torch.float64), DATA_STD)
    one = torch.ones(1, 1, dtype=torch.float64)
    x0_of_one = [
        table.P[i] * one
        + table.Q[i] * model(table.input_scale[i] * one, table.model_time[i : i + 1])
        for i in range(table.num_nodes)
    ]
    slopes = picard_slopes(table, "gaussian")
    for i in range(table.num_nodes):
        for k in range(min(table.order, i + 1)):
            answer = table.A_x0[i, k] + table.B_x0[i, k] * x0_of_one[i - k]
            assert slopes[i, k] == pytest.approx(float(answer), abs=1e-9)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_zero_saves_the_round_of_one_point(eta):
    """On data of this kind the first window needs no evaluation before it."""
    table = table_of(("ddim", "linear_beta", "epsilon", {"eta": eta}), NUM_STEPS)
    shared = dict(method="gaussian", tolerance=1e-6)
    error, stats = run(table, DATA_STD, guess="zero", **shared)
    assert error <= 1e-9
    assert stats.rounds == run(table, DATA_STD, guess="predicted", **shared)[1].rounds - 1
    first = stats.window_history[0]
    assert list(first.length) == [table.num_nodes] * 3


def test_zero_guesses_with_the_noise_of_the_steps():
    """The first window is x_i of the recurrence with x0 = 0, seen by the model in round one."""
    table = table_of(("ddpm", "linear_beta", "epsilon", {}), NUM_STEPS)
    seen = []

    def model(x, t):
        seen.append(x.clone())
        return torch.zeros_like(x)

    generator = torch.Generator().manual_seed(0)
    x_init, z = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((1, 2), (NUM_STEPS, 1, 2))
    )
    ParallelSampler(
        model, shape=(2,), solver=table, window_size=20, guess="zero", dtype=torch.float64
    ).sample(1, x_init=x_init, noise=z)
    x = x_init
    for i in range(NUM_STEPS):
        assert (seen[0][i] - table.input_scale[i] * x[0]).abs().max() <= 1e-12
        x = table.A_x0[i] * x + table.C[i] * z[i]
