"""k-diffusion's solvers in parallel, against loops written from their equations."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from ctd_engine import SequentialSampler
from ctd_engine.integrations._k_solvers import SOLVERS
from ctd_engine.integrations.k_diffusion import sample_parallel, sampler, table
from k_diffusion_loops import (
    ALL_CHURN,
    CASES,
    F32,
    F64,
    IDS,
    LIMIT,
    SHAPE,
    B,
    Noise,
    denoise,
    difference,
    karras,
    loop_churn,
    loop_sde,
    run,
    start,
)


def nothing(*_):
    pass


def test_every_solver_is_tested():
    assert {name for name, _, _ in CASES} == set(SOLVERS)


@pytest.mark.parametrize(
    "dtype, ends_in_zero", [(F64, True), (F64, False), (F32, True)], ids=["fp64", "above-0", "fp32"]
)
@pytest.mark.parametrize("name, loop, options", CASES, ids=IDS)
def test_equals_the_loop(name, loop, options, dtype, ends_in_zero):
    """With the same noise, at tolerance 0; levels in fp64, as in our tables, whatever the state."""
    for num_steps in (1, 2, 10, 25):
        sigmas = karras(num_steps, ends_in_zero=ends_in_zero)
        theirs, ours = Noise(dtype), Noise(dtype)
        expected = loop(start(dtype), sigmas, theirs, nothing, **options)
        got = sample_parallel(
            denoise,
            start(dtype),
            sigmas,
            disable=True,
            solver=name,
            noise_sampler=ours,
            tolerance=0.0,
            window_size=7,
            **options,
        )
        assert got.dtype == dtype
        assert got.isfinite().all()
        assert difference(got, expected) <= LIMIT[dtype], num_steps
        # the loop's calls, in its order
        assert len(ours.asked) == len(theirs.asked)
        torch.testing.assert_close(
            torch.tensor(ours.asked), torch.tensor(theirs.asked), rtol=1e-5, atol=0
        )


@pytest.mark.parametrize("dtype", [F64, F32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("name, loop, options", CASES, ids=IDS)
def test_parallel_equals_sequential(name, loop, options, dtype):
    for num_steps in (1, 2, 10, 25):
        sigmas = karras(num_steps)
        shared = dict(shape=SHAPE, solver=table(sigmas, solver=name, **options), dtype=dtype)
        sequential = SequentialSampler(denoise, **shared).sample(B, seed=5)
        parallel = sampler(
            denoise,
            SHAPE,
            sigmas,
            solver=name,
            tolerance=0.0,
            window_size=9,
            dtype=dtype,
            **options,
        ).sample(B, seed=5)
        assert difference(parallel.samples, sequential.samples) <= LIMIT[dtype]
        assert parallel.stats.rounds <= shared["solver"].num_nodes
        assert parallel.all_converged


def test_the_call_is_k_diffusions():
    names = list(inspect.signature(sample_parallel).parameters)
    assert names[:6] == ["model", "x", "sigmas", "extra_args", "callback", "disable"]


def test_noise_from_counters():
    """Equal seeds give equal noise; the first step's churn is in it."""
    sigmas, x = karras(8), start()
    given = dict(disable=True, window_size=5, tolerance=0.0)
    for name, options in (("heun", ALL_CHURN), ("euler_ancestral", {}), ("dpmpp_sde", {})):
        call = dict(solver=name, **given, **options)
        one, again, other = (
            sample_parallel(denoise, x, sigmas, **call, seed=seed) for seed in (7, 7, 8)
        )
        assert torch.equal(one, again)
        assert (one - other).abs().max() > 0.01
        seeds = sampler(denoise, SHAPE, sigmas, solver=name, window_size=4).sample(B, seed=7).seeds
        assert torch.equal(sample_parallel(denoise, x, sigmas, **call, seeds=seeds), one)
        torch.manual_seed(11)
        free = sample_parallel(denoise, x, sigmas, **call)
        torch.manual_seed(11)
        assert torch.equal(sample_parallel(denoise, x, sigmas, **call), free)
    # one step to 0 gives what the model returns, here its input: x after the churn
    many = torch.zeros(2, 4000, dtype=F64)
    raised = sample_parallel(
        lambda x, sigma: x, many, karras(1), seed=0, **ALL_CHURN, disable=True, window_size=1
    )
    deviation = 0.9 * 10.0 * math.sqrt(2.0 - 1.0)
    assert float(raised.std()) == pytest.approx(deviation, rel=0.03)
    assert abs(float((raised[0] * raised[1]).mean())) < 0.05 * deviation**2


@pytest.mark.parametrize("name, loop, options", CASES, ids=IDS)
def test_torchs_generator_gives_the_loops_numbers(name, loop, options):
    """With torch.randn_like as the noise sampler, equal seeds of torch give equal samples."""
    torch.manual_seed(3)
    expected = loop(start(), karras(5), lambda s, t: torch.randn_like(start()), nothing, **options)
    after = torch.rand(())
    torch.manual_seed(3)
    got = sample_parallel(
        denoise,
        start(),
        karras(5),
        disable=True,
        solver=name,
        noise_sampler=lambda s, t: torch.randn_like(start()),
        tolerance=0.0,
        window_size=4,
        **options,
    )
    assert difference(got, expected) <= 1e-10
    assert torch.equal(torch.rand(()), after)


@pytest.mark.parametrize("options", [{}, {"eta": 0.6, "r": 0.4, "s_noise": 1.1}], ids=["", "eta"])
def test_dpmpp_sde_draws_brownian_motion(options):
    """Both noises of a step are increments from its beginning: they share the first part."""
    sigmas = karras(6)
    r = options.get("r", 0.5)
    steps = table(sigmas, solver="dpmpp_sde", **options)
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(steps.num_nodes, B, *SHAPE, generator=generator, dtype=F64)
    queue = []
    for i in range(5):
        t, s = float(sigmas[i]), float(sigmas[i + 1])
        middle = t ** (1 - r) * s**r
        to_middle, to_end = math.sqrt(t - middle), math.sqrt(t - s)
        beyond = math.sqrt(middle - s)
        queue += [z[2 * i], (to_middle * z[2 * i] + beyond * z[2 * i + 1]) / to_end]
    expected = loop_sde(start(), sigmas, lambda *_: queue.pop(0), nothing, **options)
    got = SequentialSampler(denoise, shape=SHAPE, solver=steps, dtype=F64).sample(
        B, x_init=start(), noise=z
    )
    assert difference(got.samples, expected) <= 1e-10


def test_extra_args_follow_their_sample():
    sigmas, shift = karras(9), torch.tensor([0.0, 1.0, -2.0], dtype=F64)
    scales = []

    def model(x, sigma, shift, scale):
        scales.append(scale)
        return scale * denoise(x, sigma, shift)

    call = dict(disable=True, tolerance=0.0, window_size=4, solver="dpmpp_2m")
    together = sample_parallel(model, start(), sigmas, {"shift": shift, "scale": 1.5}, **call)
    assert not torch.equal(together, sample_parallel(denoise, start(), sigmas, **call))
    assert set(scales) == {1.5}
    for b in range(B):
        alone = sample_parallel(
            model, start()[b : b + 1], sigmas, {"shift": shift[b : b + 1], "scale": 1.5}, **call
        )
        assert difference(together[b : b + 1], alone) < 1e-10


def test_half_precision_keeps_the_state_in_float32():
    seen = set()

    def model(x, sigma):
        seen.add((x.dtype, sigma.dtype))
        return denoise(x, sigma)

    x = start().to(torch.bfloat16)
    got = sample_parallel(model, x, karras(5), disable=True, window_size=3, tolerance=0.0)
    assert got.dtype == torch.bfloat16
    assert seen == {(torch.bfloat16, torch.bfloat16)}
    exact = loop_churn("euler")(x.double(), karras(5), None, nothing)
    assert difference(got.double(), exact) < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_a_model_in_half_precision(dtype):
    """One that scales x by functions of sigma, as k-diffusion's Denoiser: float32 would promote."""
    layer = torch.nn.Linear(3, 3, dtype=dtype).requires_grad_(False)

    def model(x, sigma):
        sigma = sigma[:, None, None]
        scale = (sigma**2 + 0.25).rsqrt()
        return 0.25 * scale**2 * x + 0.5 * sigma * scale * layer(x * scale)

    x, sigmas = start().to(dtype), karras(5).to(dtype)
    got = sample_parallel(model, x, sigmas, disable=True, window_size=3, tolerance=0.0)
    told = sampler(model, SHAPE, sigmas, model_dtype=dtype, window_size=3, tolerance=0.0)
    again = told.sample(B, x_init=x).samples
    assert got.dtype == dtype
    assert torch.equal(again.to(dtype), got)
    level = sigmas[-2]
    single = sample_parallel(model, x, sigmas[-2:], disable=True, window_size=1)
    assert difference(single.double(), model(x, level.expand(B)).double()) < 0.01


def test_clip_x0():
    """The denoised sample is clipped, as a model that clips would."""
    call = dict(disable=True, solver="dpmpp_2m", tolerance=0.0, window_size=6)
    got = sample_parallel(denoise, start(), karras(10), clip_x0=0.3, **call)
    clipped = sample_parallel(
        lambda x, sigma: denoise(x, sigma).clamp(-0.3, 0.3), start(), karras(10), **call
    )
    assert difference(got, clipped) < 1e-10
    assert float(got.abs().max()) <= 0.3


def test_fewer_rounds_and_close():
    sigmas = karras(60)
    parallel = sampler(
        denoise, SHAPE, sigmas, solver="dpmpp_2m_sde", window_size=30, tolerance=0.05, dtype=F64
    )
    result = parallel.sample(B, seed=0)
    oracle = SequentialSampler(denoise, shape=SHAPE, solver=parallel.table, dtype=F64)
    exact = oracle.sample(B, seed=0)
    assert result.stats.rounds < 0.6 * exact.stats.rounds
    assert difference(result.samples, exact.samples) < 0.05


@pytest.mark.parametrize("disable, is_shown", [(False, True), (True, False), (None, False)])
def test_progress_bar(disable, is_shown, capsys):
    sample_parallel(denoise, start(), karras(3), disable=disable, window_size=2)
    assert ("pt" in capsys.readouterr().err) == is_shown


@pytest.mark.parametrize(
    "changes, error, match",
    [
        ({"solver": "no"}, ValueError, "solver must be one of \"euler\", .* got 'no'"),
        ({"solver": "dpm_adaptive"}, ValueError, "cannot run in parallel: it chooses its steps"),
        ({"solver": "dpm_fast"}, ValueError, "takes sigma_min, sigma_max and a number of calls"),
        ({"eta": 1.0}, ValueError, r"\"euler\" does not take \['eta'\]; it takes \['s_churn'"),
        ({"tolerence": 1.0}, ValueError, r"does not take \['tolerence'\].* ParallelSampler \["),
        ({"tolerance": -1.0}, ValueError, "tolerance must be >= 0"),
        ({"solver": "lms"}, ValueError, '"lms" needs order, from 1 to 3: k-diffusion\'s default'),
        ({"solver": "lms", "order": 4}, ValueError, "order must be at most 3, .* got 4"),
        ({"solver": "lms", "order": 0}, ValueError, "order must be an integer >= 1"),
        ({"solver": "dpmpp_2m_sde", "eta": -1.0}, ValueError, "eta must be >= 0, got -1"),
        ({"solver": "dpmpp_2m_sde", "solver_type": "x"}, ValueError, "solver_type must be one of"),
        ({"solver": "dpmpp_sde", "r": 1.0}, ValueError, r"r, the place .* must be in \(0, 1\)"),
        ({"s_churn": -1.0}, ValueError, "s_churn must be >= 0, got -1"),
        ({"s_tmin": 2.0, "s_tmax": 1.0}, ValueError, "s_tmax must be at least s_tmin = 2, got 1"),
        ({"s_noise": -1.0}, ValueError, "s_noise must be >= 0"),
        ({"s_tmax": None}, TypeError, "s_tmax must be a number, got NoneType"),
        ({"s_tmax": math.nan}, ValueError, "s_tmax must be finite, got nan"),
        ({"sigmas": torch.tensor([1.0])}, ValueError, "sigmas must hold at least 2 noise levels"),
        ({"sigmas": torch.ones(1, 2)}, ValueError, r"shape \[N \+ 1\], got \(1, 2\)"),
        ({"sigmas": torch.tensor([2.0, 2.0])}, ValueError, "must fall strictly, got 2 and then 2"),
        ({"sigmas": torch.tensor([2.0, 3.0])}, ValueError, "must fall strictly, got 2 and then 3"),
        ({"sigmas": torch.tensor([2.0, -1.0])}, ValueError, "not negative, got -1.0 at 1"),
        ({"sigmas": torch.tensor([math.inf, 1])}, ValueError, "must be finite .* got inf at 0"),
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "x must be a floating-point"),
        ({"extra_args": {"shift": torch.zeros(2)}}, ValueError, "one row per sample"),
        (
            {"extra_args": {"cond": {"c": [torch.zeros(B)]}, "scale": 2.0}},
            ValueError,
            r"extra_args\['cond'\] holds tensors inside a dict",
        ),
        ({"clip_x0": 0.0}, ValueError, "clip_x0 must be > 0"),
        (
            {"solver": "euler_ancestral", "noise_sampler": lambda s, t: torch.zeros(2)},
            ValueError,
            r"must return the shape of x, \(3, 2, 3\), got \(2,\)",
        ),
    ],
)
def test_rejects(changes, error, match):
    with pytest.raises(error, match=match):
        run(**changes)
