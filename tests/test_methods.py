"""What sets the methods and first guesses apart, beyond that all give the sequential result."""

from __future__ import annotations

import pytest
import torch

from ctd_engine import ParallelSampler, SequentialSampler, StopReason, _trajectory
from ctd_engine._coefficients import DATA_STD, picard_slopes
from ctd_engine.exact import MixtureModel
from ctd_engine.noise import CounterNoise
from ctd_engine.ops.secant_slopes import secant_slopes
from ruled_tables import RULES, RuledModel, ruled
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


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_prior_guesses_the_path_of_normal_data(problem):
    """There the first window is right at once: a round finds it unchanged, one is the last node's.

    In windows that are shorter than the path later points are predicted, as ever.
    """
    table = table_of(problem, NUM_STEPS)
    normal = MixtureModel(table, torch.zeros(1, 6, dtype=torch.float64), 1.0)
    shared = dict(shape=SHAPE, solver=table, dtype=torch.float64)
    exact = SequentialSampler(normal, **shared).sample(3, seed=4).samples
    for window_size, most, closeness in ((table.num_nodes, 2, 1e-9), (6, table.num_nodes, 1e-5)):
        result = ParallelSampler(
            normal, **shared, guess="prior", window_size=window_size, tolerance=1e-6
        ).sample(3, seed=4)
        assert (result.samples - exact).abs().max() <= closeness
        assert result.stats.rounds <= most
        first = result.stats.window_history[0]
        assert list(first.length) == [window_size] * 3


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_prior_is_for_the_first_window_alone(problem):
    """Points that enter later are predicted from what the model has said by then."""
    table = table_of(problem, NUM_STEPS)
    rings = {}
    for guess in ("prior", "predicted"):
        store = _trajectory.TrajectoryStore(
            table,
            num_slots=2,
            window_size=4,
            num_elements=3,
            method="picard",
            guess=guess,
            tolerance=0.1,
            noise=CounterNoise([1, 2], 3, torch.device("cpu")),
            dtype=torch.float64,
            device=torch.device("cpu"),
            backend=None,
        )
        generator = torch.Generator().manual_seed(0)
        for ring in (store.x, store.x0):
            ring.copy_(torch.randn(ring.shape, generator=generator, dtype=torch.float64))
        # slot 0 begins, slot 1 is under way
        known, count = torch.tensor([0, 3]), torch.tensor([4, 2])
        store.fill(torch.tensor([0, 1]), torch.tensor([0, 1]), known, count, 4)
        rings[guess] = store.x
    assert torch.equal(rings["prior"][1], rings["predicted"][1])
    assert not torch.allclose(rings["prior"][0], rings["predicted"][0])


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


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_secant_is_newton_on_gaussian_data_of_any_width(problem):
    """One pair tells all of the derivative there, whatever the data's deviation.

    A round makes the pairs that the next one uses; then as with the right "gaussian". Steps that
    look back on more than one node have a slope for all of them together, which is not exact.
    """
    table = table_of(problem, NUM_STEPS)
    options = dict(guess="zero", tolerance=1e-6)
    for std in (0.1, 0.4):
        error, stats = run(table, std, method="secant", **options)
        assert error <= (1e-9 if table.order == 1 else 1e-6)
        assert table.order > 1 or stats.rounds <= 5
    # at 0.1 the slope is far from 1
    rounds = [run(table, 0.1, method=m, **options)[1].rounds for m in ("secant", "picard")]
    assert rounds[0] < rounds[1]


def test_secant_slopes_are_the_steps_derivative(monkeypatch):
    """Recorded in a run on Gaussian data: the closed form wherever there was a pair, else 1."""
    table = table_of(("ddpm", "linear_beta", "epsilon", {}), NUM_STEPS)
    recorded = []

    def recording(*arguments, **options):
        slopes = secant_slopes(*arguments, **options)
        recorded.append((arguments[4], slopes))
        return slopes

    monkeypatch.setattr(_trajectory, "secant_slopes", recording)
    # step by step: the rounds in C++ do not come by
    run(table, 0.3, method="secant", window_size=7, scheduler_backend="python")
    alpha, sigma = table.alpha[:-1], table.sigma[:-1]
    j = 0.3**2 * alpha / ((0.3 * alpha).square() + sigma.square())
    exact = (table.A_x0 + table.B_x0 * j[:, None])[:, 0]
    num_exact = 0
    for windows, slopes in recorded:
        # what was evaluated in the round before, but for final points, which no longer move
        has_pair = windows.row_node < windows.known[windows.row_entry]
        assert (slopes[~has_pair] == 1).all()
        is_exact = (slopes - exact[windows.row_node].clamp(0.0, 1.0)).abs() < 1e-6
        num_exact += int(is_exact[has_pair].sum())
    assert num_exact >= 20


def test_secant_holds_one_more_ring():
    table = table_of(("ddpm", "linear_beta", "epsilon", {}), NUM_STEPS)
    stats = [run(table, 0.5, method=method, window_size=5)[1] for method in ("picard", "secant")]
    assert 2 * stats[1].state_bytes == 3 * stats[0].state_bytes == 3 * 2 * 3 * 6 * 6 * 8


def test_secant_keeps_nan_in_its_sample():
    """A sample that diverges, and the one that takes its slot, beside one that does not know."""
    table = table_of(("ddpm", "linear_beta", "epsilon", {}), NUM_STEPS)
    exact = MixtureModel(table, torch.full((1, 6), 0.7, dtype=torch.float64), 0.4)

    def model(x, t, bad):
        return torch.where(bad[:, None, None] & (t < 500)[:, None, None], torch.nan, exact(x, t))

    options = dict(shape=SHAPE, solver=table, dtype=torch.float64, window_size=6, tolerance=0.0)
    sampler = ParallelSampler(model, **options, method="secant", max_rows=12)
    bad = torch.tensor([True, False, False])
    result = sampler.sample(3, seeds=[1, 2, 3], cond={"bad": bad})
    assert result.stop_reasons[0] is StopReason.DIVERGED
    assert result.samples[0].isnan().all()
    oracle = SequentialSampler(exact, shape=SHAPE, solver=table, dtype=torch.float64)
    want = oracle.sample(2, seeds=[2, 3]).samples
    assert (result.samples[1:] - want).abs().max() <= 1e-9


@pytest.mark.parametrize("name", RULES)
def test_secant_with_steps_that_are_not_linear(name):
    """Its slopes are those of the x0 that the rule makes."""
    table = ruled(**RULES[name])
    options = dict(shape=(2, 4), solver=table, dtype=torch.float64)
    model = RuledModel(table.outputs)
    want = SequentialSampler(model, **options).sample(3, seeds=[4, 5, 6]).samples
    sampler = ParallelSampler(model, **options, method="secant", window_size=5, tolerance=0.0)
    result = sampler.sample(3, seeds=[4, 5, 6])
    assert (result.samples - want).abs().max() <= 1e-9
    assert result.stats.rounds <= table.num_nodes
