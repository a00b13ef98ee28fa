"""The samplers' contract: input, conditioning, failure, cost, memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ctd_engine import ParallelSampler, SequentialSampler, StopReason, schedules
from small_problems import PROBLEMS, SHAPE, mixture, table_of

TABLE = table_of(PROBLEMS[0], 40)
OPTIONS = dict(shape=SHAPE, solver=TABLE, dtype=torch.float64)


def failing(bad_sample, first_bad_row_time=None):
    """The exact model, but NaN for one sample (from a time on)."""
    exact = mixture(TABLE)

    def model(x, t, index):
        out = exact(x, t)
        is_bad = index == bad_sample
        if first_bad_row_time is not None:
            is_bad = is_bad & (t < first_bad_row_time)
        return torch.where(is_bad[:, None, None], torch.nan, out)

    return model


@pytest.mark.parametrize("from_time", [None, 300.0])
@pytest.mark.parametrize("max_rows", [7, 256])
def test_nan_is_contained_to_its_sample(max_rows, from_time):
    cond = {"index": torch.arange(4)}
    clean = ParallelSampler(failing(-1), **OPTIONS, window_size=10, max_rows=max_rows)
    broken = ParallelSampler(failing(2, from_time), **OPTIONS, window_size=10, max_rows=max_rows)
    expected = clean.sample(4, seed=0, cond=cond)
    result = broken.sample(4, seed=0, cond=cond)
    assert result.stop_reasons[2] is StopReason.DIVERGED
    assert torch.isnan(result.samples[2]).all()
    others = [0, 1, 3]
    assert all(result.stop_reasons[b] is StopReason.CONVERGED for b in others)
    tolerance = 1e-12 if max_rows == 256 else 0.05
    assert (result.samples[others] - expected.samples[others]).abs().max() < tolerance
    sequential = SequentialSampler(failing(2, from_time), **OPTIONS).sample(4, seed=0, cond=cond)
    assert sequential.stop_reasons == result.stop_reasons


def test_nan_off_the_final_path_heals():
    """A model that fails far off the path stops no sample: those points are guessed again."""
    exact = mixture(TABLE)
    failures = 0

    def model(x, t):
        nonlocal failures
        # the first full window holds guesses; fail on its far half once
        out = exact(x, t)
        if len(x) > 10 and failures == 0:
            failures += 1
            out[len(x) // 2 :] = torch.inf
        return out

    result = ParallelSampler(model, **OPTIONS, window_size=20, tolerance=0.0).sample(1, seed=4)
    expected = SequentialSampler(exact, **OPTIONS).sample(1, seed=4)
    assert failures == 1
    assert result.stop_reasons == [StopReason.CONVERGED]
    assert (result.samples - expected.samples).abs().max() < 1e-9
    assert result.stats.rounds <= TABLE.num_nodes


def test_max_rounds_returns_the_best_estimate():
    sampler = ParallelSampler(
        mixture(TABLE), **OPTIONS, window_size=40, max_rounds=4, tolerance=1e-9
    )
    result = sampler.sample(3, seed=0)
    assert result.stop_reasons == [StopReason.MAX_ROUNDS] * 3
    assert result.stats.rounds == 4
    assert torch.isfinite(result.samples).all()
    # an estimate of x0 lies near the data, a noisy state would not
    assert result.samples.abs().max() < 5.0


def test_callback_cancels():
    told = []

    def callback(progress):
        told.append(progress)
        return progress.round == 3

    sampler = ParallelSampler(mixture(TABLE), **OPTIONS, window_size=6, max_rows=6)
    result = sampler.sample(3, seed=0, callback=callback)
    assert [p.round for p in told] == [1, 2, 3]
    assert result.stop_reasons == [StopReason.CANCELLED] * 3
    assert result.stats.rounds == 3
    assert torch.isfinite(result.samples[0]).all()
    assert torch.isnan(result.samples[2]).all()  # it never began
    sequential = SequentialSampler(mixture(TABLE), **OPTIONS).sample(3, seed=0, callback=callback)
    assert sequential.stop_reasons == [StopReason.CANCELLED] * 3
    assert torch.isfinite(sequential.samples).all()


def test_statistics_add_up():
    result = ParallelSampler(mixture(TABLE), **OPTIONS, window_size=6, max_rows=13).sample(
        5, seed=0
    )
    stats = result.stats
    assert stats.rounds == len(stats.window_history)
    assert stats.evaluations == sum(int(r.length.sum()) for r in stats.window_history)
    assert stats.evaluations == stats.evaluations_per_sample.sum()
    assert stats.wall_time_s > 0
    counted = np.zeros(5, dtype=int)
    for record in stats.window_history:
        counted[record.sample] += 1
    assert (counted == stats.rounds_per_sample).all()


@pytest.mark.parametrize("num_steps", [100, 1000])
def test_memory_grows_with_the_window_not_with_the_steps(num_steps):
    """At N = 1000 and window 32 the state is at most 1/15 of trajectory and noise."""
    num_samples, window_size, num_elements = 4, 32, 6
    table = table_of(PROBLEMS[0], num_steps)
    sampler = ParallelSampler(
        mixture(table), shape=SHAPE, solver=table, window_size=window_size, tolerance=0.5
    )
    stats = sampler.sample(num_samples, seed=0).stats
    assert stats.state_bytes == 2 * num_samples * (window_size + 1) * num_elements * 4
    if num_steps == 1000:
        stored = (2 * num_steps + 1) * num_samples * num_elements * 4
        assert stats.state_bytes * 15 <= stored


def test_guidance_combines_both_answers():
    exact = mixture(TABLE)

    def model(x, t, shift):
        return exact(x, t) + shift[:, None, None]

    cond = {"shift": torch.tensor([0.01, -0.02], dtype=torch.float64)}
    null = {"shift": torch.tensor([0.005], dtype=torch.float64)}

    def combined(x, t, shift):
        return exact(x, t) + (0.005 + 3.0 * (shift - 0.005))[:, None, None]

    guided = SequentialSampler(model, **OPTIONS, null_cond=null)
    expected = SequentialSampler(combined, **OPTIONS).sample(2, seed=0, cond=cond)
    result = guided.sample(2, seed=0, cond=cond, guidance_scale=3.0)
    assert (result.samples - expected.samples).abs().max() < 1e-9
    assert result.stats.evaluations == 2 * expected.stats.evaluations
    parallel = ParallelSampler(model, **OPTIONS, null_cond=null, window_size=9, tolerance=0.0)
    again = parallel.sample(2, seed=0, cond=cond, guidance_scale=3.0)
    assert (again.samples - expected.samples).abs().max() < 1e-9
    # scale 1 needs no second half
    single = guided.sample(2, seed=0, cond=cond, guidance_scale=1.0)
    assert single.stats.evaluations == expected.stats.evaluations


def test_conditioning_follows_its_sample():
    """Rows of many samples are packed into one batch; each gets its own conditioning."""
    exact = mixture(TABLE)

    def model(x, t, scale, name):
        assert name == "constant"
        return exact(x, t) * scale[:, None, None]

    scale = torch.tensor([0.9, 1.0, 1.1])
    sampler = ParallelSampler(model, **OPTIONS, window_size=7, max_rows=10, tolerance=0.0)
    seeds = [1, 2, 3]
    together = sampler.sample(3, seeds=seeds, cond={"scale": scale, "name": "constant"})
    for b in range(3):
        alone = sampler.sample(
            1, seeds=seeds[b : b + 1], cond={"scale": scale[b : b + 1], "name": "constant"}
        )
        assert (alone.samples[0] - together.samples[b]).abs().max() < 1e-9


def test_half_precision_model_keeps_full_precision_state_and_time():
    seen = []
    exact = mixture(TABLE)

    def model(x, t):
        seen.append((x.dtype, t.dtype))
        return exact(x.float(), t).to(x.dtype)

    sampler = ParallelSampler(
        model, shape=SHAPE, solver=TABLE, model_dtype=torch.bfloat16, window_size=10
    )
    result = sampler.sample(2, seed=0)
    assert set(seen) == {(torch.bfloat16, torch.float32)}
    assert result.samples.dtype == torch.float32
    assert result.all_converged


def test_model_gets_the_table_rows():
    """Scaled states and times arrive as the table says, EDM's preconditioning included."""
    table = table_of(("euler", "karras", "edm", {}), 5)
    calls = []

    def model(x, t):
        calls.append((x.clone(), t.clone()))
        return torch.zeros_like(x)

    x_init = torch.ones(1, *SHAPE, dtype=torch.float64)
    SequentialSampler(model, shape=SHAPE, solver=table, dtype=torch.float64).sample(
        1, x_init=x_init
    )
    sigma = table.sigma[0].item()
    assert calls[0][0].flatten()[0].item() == pytest.approx((sigma**2 + 0.25) ** -0.5)
    assert [t.item() for _, t in calls] == pytest.approx((table.sigma[:-1].log() / 4).tolist())


def test_repeatable_and_global_generator():
    sampler = ParallelSampler(mixture(TABLE), **OPTIONS, window_size=10)
    assert torch.equal(sampler.sample(2, seed=1).samples, sampler.sample(2, seed=1).samples)
    assert not torch.equal(sampler.sample(2, seed=1).samples, sampler.sample(2, seed=2).samples)
    torch.manual_seed(0)
    first = sampler.sample(2)
    again = sampler.sample(2, seeds=first.seeds)
    assert torch.equal(first.samples, again.samples)


GOOD = dict(model=lambda x, t: x, shape=SHAPE, schedule=schedules.linear_beta(), num_steps=10)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"model": 3}, TypeError, "model must be callable"),
        ({"shape": ()}, ValueError, "shape must be a sequence of sizes"),
        ({"shape": (3, 0)}, ValueError, "shape must be an integer >= 1, got 0"),
        ({"schedule": None}, ValueError, "schedule is needed"),
        ({"solver": "nope"}, ValueError, 'solver must be one of "ddpm"'),
        ({"solver_options": {"eta": 0.5}}, ValueError, 'solver "ddpm" does not take'),
        ({"num_steps": 0}, ValueError, "num_steps must be an integer >= 1, got 0"),
        ({"num_steps": 1001}, ValueError, "num_steps must be at most the schedule's 1000"),
        ({"num_steps": 2.5}, TypeError, "num_steps must be an integer, got float"),
        ({"prediction": "noise"}, ValueError, "prediction must be one of"),
        ({"time": "seconds"}, ValueError, "time must be None or one of"),
        ({"clip_x0": -1.0}, ValueError, "clip_x0 must be > 0"),
        ({"window_size": 0}, ValueError, "window_size must be an integer >= 1, got 0"),
        ({"window_size": "all"}, ValueError, 'window_size must be "auto" or'),
        ({"tolerance": -0.1}, ValueError, "tolerance must be >= 0"),
        ({"tolerance": float("nan")}, ValueError, "tolerance must be finite"),
        ({"method": "newton"}, ValueError, 'method must be one of "picard"'),
        ({"guess": "random"}, ValueError, "guess must be one of"),
        ({"max_rows": 0}, ValueError, "max_rows must be an integer >= 1"),
        ({"max_rounds": 0}, ValueError, "max_rounds must be an integer >= 1"),
        ({"dtype": torch.float16}, ValueError, "dtype must be torch.float32 or torch.float64"),
        ({"model_dtype": torch.int64}, ValueError, "model_dtype must be a floating point dtype"),
        ({"backend": "cuda"}, ValueError, "backend must be None or one of"),
    ],
    ids=str,
)
def test_rejects_arguments(changes, error, match):
    with pytest.raises(error, match=match):
        ParallelSampler(**{**GOOD, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be an integer >= 1"),
        ({"seeds": [1]}, ValueError, "seeds must have one entry per sample: 2, got 1"),
        ({"seed": -1}, ValueError, "seed must be in"),
        (
            {"x_init": torch.zeros(2, 6)},
            ValueError,
            r"x_init must have shape \(2, 3, 2\) = \(num_samples, \*shape\), got \(2, 6\)",
        ),
        ({"x_init": np.zeros((2, 3, 2))}, TypeError, "x_init must be a tensor, got ndarray"),
        ({"x_init": torch.zeros(2, 3, 2).long()}, TypeError, "x_init must be floating point"),
        ({"x_init": torch.full((2, 3, 2), torch.nan)}, ValueError, "x_init must be finite"),
        (
            {"noise": torch.zeros(9, 2, 3, 2)},
            ValueError,
            r"noise must have shape \(10, 2, 3, 2\) = \(num_nodes, num_samples, \*shape\)",
        ),
        ({"noise": 3}, TypeError, "noise must be a tensor or a callable"),
        ({"noise": lambda i, b: torch.zeros(3)}, ValueError, "must return a tensor"),
        ({"cond": {"y": torch.zeros(3)}}, ValueError, r"cond\['y'\] must have one row per sample"),
        ({"guidance_scale": 2.0}, ValueError, "guidance_scale needs cond"),
        (
            {"guidance_scale": 2.0, "cond": {"y": torch.zeros(2)}},
            ValueError,
            "guidance_scale needs the sampler's null_cond",
        ),
        ({"guidance_scale": "big"}, TypeError, "guidance_scale must be a number"),
    ],
    # without addresses, which differ from process to process
    ids=lambda value: str(value).partition(" at 0x")[0],
)
@pytest.mark.parametrize("sampler", [ParallelSampler, SequentialSampler])
def test_rejects_requests(sampler, changes, error, match):
    with pytest.raises(error, match=match):
        sampler(**GOOD).sample(**{"num_samples": 2, **changes})


@pytest.mark.parametrize(
    ("model", "error", "match"),
    [
        (lambda x, t: x[:, :1], ValueError, r"model must return the shape of its input"),
        (lambda x, t: [x], TypeError, "model must return a tensor, got list"),
    ],
)
@pytest.mark.parametrize("sampler", [ParallelSampler, SequentialSampler])
def test_rejects_model_output(sampler, model, error, match):
    with pytest.raises(error, match=match):
        sampler(**{**GOOD, "model": model}).sample(2)


@pytest.mark.parametrize(
    ("null", "match"),
    [
        ({"z": torch.zeros(1)}, "null_cond must have the keys of cond"),
        ({"y": torch.zeros(3)}, "must have 1 or 2 rows, got 3"),
        ({"y": torch.zeros(1, 4)}, "must be a tensor"),
    ],
)
def test_rejects_null_conditioning(null, match):
    sampler = SequentialSampler(**GOOD, null_cond=null)
    with pytest.raises(ValueError, match=match):
        sampler.sample(2, cond={"y": torch.zeros(2)}, guidance_scale=2.0)
