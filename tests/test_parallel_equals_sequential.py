"""The first promise: at tolerance 0 the parallel sampler gives the sequential sampler's result."""

from __future__ import annotations

import pytest
import torch

from ctd_engine import ParallelSampler, SequentialSampler, StopReason, solvers
from ctd_engine._coefficients import METHODS
from ctd_engine.parametrization import PREDICTIONS
from small_problems import IDS, PROBLEMS, SHAPE, mixture, table_of

NUM_STEPS = 12
NUM_SAMPLES = 3


def both(table, window_size, *, num_samples=NUM_SAMPLES, **options):
    model = mixture(table)
    shared = dict(shape=SHAPE, solver=table, dtype=torch.float64)
    sequential = SequentialSampler(model, **shared).sample(num_samples, seed=3)
    options = {"tolerance": 0.0, **options}
    parallel = ParallelSampler(model, **shared, window_size=window_size, **options)
    return sequential, parallel.sample(num_samples, seed=3)


@pytest.mark.parametrize("window_size", [2, 7, NUM_STEPS, 10 * NUM_STEPS])
@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_every_solver(problem, window_size):
    table = table_of(problem, NUM_STEPS)
    sequential, parallel = both(table, window_size)
    assert torch.isfinite(sequential.samples).all()
    assert (parallel.samples - sequential.samples).abs().max() <= 1e-9
    assert parallel.stats.rounds <= table.num_nodes
    assert parallel.all_converged


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("solver", solvers.SOLVERS)
def test_every_solver_with_every_prediction(solver, prediction):
    """The full cross, at every window; only what cannot mean anything is refused."""
    schedule = "flow" if solver == "flow_euler" else "linear_beta"
    if schedule == "flow" and prediction in ("epsilon", "v"):
        with pytest.raises(ValueError, match="prediction"):
            table_of((solver, schedule, prediction, {}), NUM_STEPS)
        return
    # c_noise, the own time of "edm", is infinite at the flow's first node
    time = "flow" if schedule == "flow" else None
    table = table_of((solver, schedule, prediction, {}), NUM_STEPS, time=time)
    for window_size in (1, 2, 7, NUM_STEPS, 10 * NUM_STEPS):
        sequential, parallel = both(table, window_size)
        assert torch.isfinite(sequential.samples).all()
        assert (parallel.samples - sequential.samples).abs().max() <= 1e-9
        assert parallel.stats.rounds <= table.num_nodes
        assert parallel.all_converged
        assert window_size > 1 or torch.equal(parallel.samples, sequential.samples)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_window_1_is_bitwise_equal(problem, method):
    table = table_of(problem, NUM_STEPS)
    sequential, parallel = both(table, 1, method=method)
    assert torch.equal(parallel.samples, sequential.samples)
    assert parallel.stats.rounds == sequential.stats.rounds == table.num_nodes
    assert parallel.stats.evaluations == sequential.stats.evaluations


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("guess", ["predicted", "zero", "prior", "copy"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_every_method_and_guess(problem, guess, method):
    table = table_of(problem, NUM_STEPS)
    sequential, parallel = both(table, 5, guess=guess, method=method)
    assert (parallel.samples - sequential.samples).abs().max() <= 1e-9
    assert parallel.stats.rounds <= table.num_nodes


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_clipped_x0(problem):
    """Clipping is the one nonlinearity; the bound is low enough to be met."""
    table = table_of(problem, NUM_STEPS, clip_x0=0.5)
    sequential, parallel = both(table, 5)
    unclipped, _ = both(table_of(problem, NUM_STEPS), 5)
    assert (sequential.samples - unclipped.samples).abs().max() > 0.05
    assert (parallel.samples - sequential.samples).abs().max() <= 1e-9


@pytest.mark.parametrize(
    "options",
    [
        {"max_rows": 3},
        {"max_rows": 11},
        {"max_rows": 200},
        {"scheduler_backend": "python"},
        {"backend": "reference"},
        {"backend": "reference", "max_rows": 11},
        {"lockstep": True, "guess": "copy"},
    ],
    ids=str,
)
def test_any_row_budget_scheduler_and_backend(options):
    table = table_of(PROBLEMS[0], NUM_STEPS)
    sequential, parallel = both(table, 5, num_samples=7, **options)
    assert (parallel.samples - sequential.samples).abs().max() <= 1e-9
    budget = options.get("max_rows", 256)
    assert max(int(r.length.sum()) for r in parallel.stats.window_history) <= budget


def test_num_steps_equal_to_training_steps():
    table = table_of(("ddpm", "linear_beta", "epsilon", {}), 1000)
    sequential, parallel = both(table, 40, num_samples=1)
    assert (parallel.samples - sequential.samples).abs().max() <= 1e-9
    assert parallel.stats.rounds <= 1000


def test_loose_tolerance_stays_close_in_fewer_rounds():
    table = table_of(("ddpm", "linear_beta", "epsilon", {}), 200)
    sequential, parallel = both(table, 50, tolerance=0.1)
    assert parallel.stats.rounds < 50
    assert (parallel.samples - sequential.samples).square().mean().sqrt() < 0.05


def test_float32_agrees_with_float64():
    table = table_of(("ddpm", "linear_beta", "epsilon", {}), 100)
    model = mixture(table)
    results = [
        ParallelSampler(model, shape=SHAPE, solver=table, dtype=dtype, tolerance=0.01)
        .sample(4, seed=1)
        .samples.double()
        for dtype in (torch.float32, torch.float64)
    ]
    assert (results[0] - results[1]).abs().max() < 2e-3


def test_samples_do_not_depend_on_company():
    """Alone, in any batch and in any order a seed gives its sample."""
    table = table_of(("ddpm", "linear_beta", "epsilon", {}), 60)
    sampler = ParallelSampler(
        mixture(table), shape=SHAPE, solver=table, window_size=9, dtype=torch.float64, max_rows=20
    )
    seeds = [5, 2**64 - 1, 17, 0, 99]
    together = sampler.sample(5, seeds=seeds)
    reverse = sampler.sample(5, seeds=seeds[::-1]).samples.flip(0)
    assert (together.samples - reverse).abs().max() < 0.02
    exact = ParallelSampler(
        mixture(table), shape=SHAPE, solver=table, window_size=9, dtype=torch.float64, tolerance=0.0
    )
    all_five = exact.sample(5, seeds=seeds).samples
    for b, seed in enumerate(seeds):
        alone = exact.sample(1, seeds=[seed])
        assert alone.seeds == [seed]
        assert (alone.samples[0] - all_five[b]).abs().max() < 1e-12


def test_explicit_noise_and_start():
    table = table_of(("ddpm", "linear_beta", "epsilon", {}), 30)
    generator = torch.Generator().manual_seed(1)
    x_init = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    noise = torch.randn(30, 2, *SHAPE, generator=generator, dtype=torch.float64)
    model = mixture(table)
    options = dict(shape=SHAPE, solver=table, dtype=torch.float64)
    given = dict(x_init=x_init, noise=noise)
    sequential = SequentialSampler(model, **options).sample(2, **given)
    parallel = ParallelSampler(model, **options, tolerance=0.0, window_size=8)
    called = dict(x_init=x_init, noise=lambda nodes, samples: noise[nodes, samples])
    for arguments in (given, called):
        result = parallel.sample(2, **arguments)
        assert (result.samples - sequential.samples).abs().max() < 1e-9
    # the textbook loop of DDPM, Ho et al. 2020, Alg. 2, eq. 11
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = torch.cumprod(1 - betas, 0)
    steps = [round(1000 - 1000 * i / 30) - 1 for i in range(30)]
    x = x_init
    for i, t in enumerate(steps):
        before = bar[steps[i + 1]] if i < 29 else torch.tensor(1.0, dtype=torch.float64)
        alpha = bar[t] / before
        eps = model(x, torch.full((2,), float(t)))
        mean = (x - (1 - alpha) / (1 - bar[t]).sqrt() * eps) / alpha.sqrt()
        x = mean + ((1 - before) / (1 - bar[t]) * (1 - alpha)).sqrt() * noise[i]
    assert (x - sequential.samples).abs().max() < 1e-9


def test_one_slow_sample_does_not_hold_back_another():
    """A sample whose answer keeps changing needs all its rounds; its neighbour is done early."""
    table = table_of(("ddim", "linear_beta", "epsilon", {}), 40)
    easy = mixture(table)

    def model(x, t, hard):
        return torch.where(hard[:, None, None], torch.sin(40.0 * x), easy(x, t))

    sampler = ParallelSampler(
        model, shape=SHAPE, solver=table, window_size=40, dtype=torch.float64, max_rows=80
    )
    result = sampler.sample(2, seed=0, cond={"hard": torch.tensor([True, False])})
    slow, fast = result.stats.rounds_per_sample
    assert slow >= 2 * fast
    assert result.stop_reasons == [StopReason.CONVERGED] * 2
