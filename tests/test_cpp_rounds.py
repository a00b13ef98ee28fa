"""Rounds in two C++ calls against the same rounds step by step: the same bits in everything."""

from __future__ import annotations

import math

import pytest
import torch

from ctd_engine import ParallelSampler, StopReason, _ext
from ctd_engine._cpp_steps import CppSteps
from ctd_engine._output_rule import OutputRule
from ctd_engine._round_steps import PlannedSteps, make_steps
from ctd_engine._rounds import Rounds
from ctd_engine._run_settings import make_store, num_slots_for, scheduler_sizes
from small_problems import PROBLEMS, SHAPE, table_of

pytestmark = pytest.mark.skipif(
    _ext.unavailable_reason() is not None, reason=f"no extension: {_ext.unavailable_reason()}"
)

NUM_STEPS, NUM_SAMPLES = 12, 5
# more elements than a chunk of the kernels
LONG = (1, 1027)
DDPM, DDIM = PROBLEMS[0], PROBLEMS[2]
ETA, HEUN, DPMPP_2M, DPMPP_SDE = PROBLEMS[3], PROBLEMS[9], PROBLEMS[10], PROBLEMS[12]


class Model:
    """Answers row by row in arithmetic whose bits do not depend on the batch; keeps all calls."""

    def __init__(self, dtype=None, diverges_at=None):
        self.calls = []
        self._dtype = dtype
        self._diverges_at = diverges_at

    def __call__(self, x, t, scale=None):
        self.calls.append([v.clone() for v in (x, t, scale) if v is not None])
        out = x / (1.0 + 0.5 * x * x) + 0.001 * t.to(x.dtype).view(-1, 1, 1)
        if scale is not None:
            out = out * scale.to(x.dtype)[:, None]
        if self._diverges_at is not None:
            out[t < self._diverges_at] = math.nan
        return out.to(self._dtype or out.dtype)


def noise_of(shape, table, dtype):
    generator = torch.Generator().manual_seed(2)
    size = (table.num_nodes, NUM_SAMPLES, *shape)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)


def run(problem, *, shape=SHAPE, clip_x0=None, model=None, call=None, given_noise=False, **options):
    """The result, what the model was called with, what the callback was told, and whose rounds."""
    table = table_of(problem, NUM_STEPS, clip_x0=clip_x0)
    dtype = options.pop("dtype", torch.float32)
    options = {"window_size": 5, "tolerance": 0.3, "max_rows": 13, **options}
    model = Model(**(model or {}))
    sampler = ParallelSampler(model, shape=shape, solver=table, dtype=dtype, **options)
    noise = noise_of(shape, table, dtype) if given_noise else None
    told, finals = [], []

    def callback(news):
        told.append((news.round, news.evaluations, news.num_finished))
        if news.points is not None:
            finals.append(news.points.num_final)
        return stop is not None and news.round == stop

    call = {"keep_trajectory": True, **(call or {})}
    stop = call.pop("stop", None)
    result = sampler.sample(NUM_SAMPLES, seed=3, noise=noise, callback=callback, **call)
    return result, model.calls, told, finals


def assert_same(one, other):
    """The same bits, NaN in the same places."""
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    assert torch.equal(one.isnan(), other.isnan())
    assert torch.equal(one.nan_to_num(), other.nan_to_num())


def assert_same_runs(one, other):
    (result, calls, told, finals), (want, want_calls, want_told, want_finals) = one, other
    assert_same(result.samples, want.samples)
    assert (result.trajectory is None) == (want.trajectory is None)
    if want.trajectory is not None:
        assert_same(result.trajectory, want.trajectory)
    assert result.stop_reasons == want.stop_reasons
    for name in ("rounds", "evaluations", "state_bytes"):
        assert getattr(result.stats, name) == getattr(want.stats, name)
    for name in ("rounds_per_sample", "evaluations_per_sample"):
        assert (getattr(result.stats, name) == getattr(want.stats, name)).all()
    history, want_history = result.stats.window_history, want.stats.window_history
    assert len(history) == len(want_history) == len(calls) == len(want_calls)
    for windows, wanted in zip(history, want_history, strict=True):
        for name in ("sample", "start", "length"):
            assert getattr(windows, name).tolist() == getattr(wanted, name).tolist()
    for tensors, wanted in zip(calls, want_calls, strict=True):
        for got, expected in zip(tensors, wanted, strict=True):
            assert_same(got, expected)
    assert told == want_told
    assert [f.tolist() for f in finals] == [f.tolist() for f in want_finals]


@pytest.fixture
def counted(monkeypatch):
    """How many rounds each implementation began."""
    counts = {}
    for kind in (CppSteps, PlannedSteps):
        counts[kind] = 0
        begin = kind.begin

        def counting(self, kind=kind, begin=begin):
            counts[kind] += 1
            return begin(self)

        monkeypatch.setattr(kind, "begin", counting)
    return counts


SCALES = torch.tensor([0.5, 1.0, 1.5, 0.75, 1.25])[:, None]
GUIDED = {
    "options": {"null_cond": {"scale": torch.full((1, 1), 0.25)}},
    "call": {"cond": {"scale": SCALES}, "guidance_scale": 2.5},
}
RUNS = {
    "ddpm, noise from the counter": dict(problem=DDPM),
    "more elements than a chunk": dict(problem=DDPM, shape=LONG),
    "given noise": dict(problem=DDPM, given_noise=True),
    "given noise, more elements": dict(problem=ETA, given_noise=True, shape=LONG),
    "ddim": dict(problem=DDIM),
    "eta": dict(problem=ETA),
    "heun": dict(problem=HEUN),
    "two steps back": dict(problem=DPMPP_2M),
    "two steps back, noise": dict(problem=DPMPP_SDE, given_noise=True),
    "clipped": dict(problem=DDPM, clip_x0=0.5),
    "secant": dict(problem=DDPM, method="secant"),
    "secant, two steps back, clipped": dict(problem=DPMPP_SDE, method="secant", clip_x0=0.75),
    "order_k": dict(problem=DPMPP_2M, method="order_k"),
    "zero": dict(problem=DDPM, guess="zero"),
    "prior": dict(problem=DDPM, guess="prior"),
    "prior, two steps back": dict(problem=DPMPP_2M, guess="prior", method="secant"),
    "copy": dict(problem=DDPM, guess="copy"),
    "guided": dict(problem=DDPM, call=GUIDED["call"], **GUIDED["options"]),
    "guided, secant, clipped": dict(
        problem=DDIM, call=GUIDED["call"], method="secant", clip_x0=0.5, **GUIDED["options"]
    ),
    "adaptive": dict(problem=DDPM, adaptive_window=2.0, guess="prior", method="secant"),
    "lockstep": dict(problem=DDPM, lockstep=True, max_rows=25),
    "enough rows": dict(problem=DDPM, max_rows=256),
    "one slot": dict(problem=DDPM, max_rows=5),
    "window of one": dict(problem=DPMPP_SDE, window_size=1),
    "whole window": dict(problem=DDPM, window_size=NUM_STEPS),
    "tolerance 0": dict(problem=DDIM, tolerance=0.0),
    "few rounds": dict(problem=DDPM, max_rounds=3, tolerance=0.0),
    "no trajectory": dict(problem=DDPM, call={"keep_trajectory": False}),
    "cancelled": dict(problem=DDPM, call={"stop": 3}),
    "half a precision": dict(problem=DDPM, model_dtype=torch.float16),
    "outputs in half": dict(problem=DDPM, model={"dtype": torch.bfloat16}, method="secant"),
    "diverges": dict(problem=DDPM, model={"diverges_at": 400.0}),
    "diverges at once": dict(problem=DPMPP_2M, model={"diverges_at": 2000.0}, method="secant"),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("named", RUNS.values(), ids=RUNS.keys())
def test_rounds_are_those_made_step_by_step(named, dtype, counted):
    got = run(**named, dtype=dtype)
    assert counted[CppSteps] == len(got[1]) > 1
    assert counted[PlannedSteps] == 0
    want = run(**named, dtype=dtype, backend="cpp", scheduler_backend="python")
    assert counted[PlannedSteps] == len(want[1])
    assert_same_runs(got, want)


def test_the_runs_are_what_they_are_called():
    """Windows move, slots change hands, samples end as their names say."""
    result = run(**RUNS["ddpm, noise from the counter"])[0]
    assert result.all_converged
    assert result.stats.rounds < NUM_SAMPLES * NUM_STEPS
    assert set(run(**RUNS["few rounds"])[0].stop_reasons) == {StopReason.MAX_ROUNDS}
    assert set(run(**RUNS["diverges"])[0].stop_reasons) == {StopReason.DIVERGED}
    cancelled = run(**RUNS["cancelled"])[0]
    assert StopReason.CANCELLED in cancelled.stop_reasons
    assert cancelled.samples.isfinite().any()
    assert {len(r.sample) for r in run(**RUNS["one slot"])[0].stats.window_history} == {1}
    lengths = {int(n) for r in run(**RUNS["adaptive"])[0].stats.window_history for n in r.length}
    assert len(lengths) > 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "name", ["given noise", "ddim", "heun", "two steps back, noise", "clipped, given", "guided"]
)
def test_rounds_are_those_of_the_reference(name, dtype):
    """PyTorch alone: the same bits, but for sums of squares, which decide nothing here."""
    named = dict(RUNS.get(name, dict(problem=DDPM, clip_x0=0.5)), tolerance=0.0)
    named["given_noise"] = True
    want = run(**named, dtype=dtype, backend="reference", scheduler_backend="python")
    assert_same_runs(run(**named, dtype=dtype), want)


@pytest.mark.parametrize("name", ["ddpm, noise from the counter", "secant", "prior", "adaptive"])
def test_rounds_are_close_to_the_reference(name):
    """Normals and sums in another order differ in their last bits."""
    named = dict(RUNS[name], dtype=torch.float64)
    got, want = run(**named)[0], run(**named, backend="reference")[0]
    torch.testing.assert_close(got.samples, want.samples, rtol=0.0, atol=1e-11)
    assert got.stats.evaluations == want.stats.evaluations


def test_conditioning_is_that_of_each_row():
    """With guidance those without condition come first, and every row has its sample's number."""
    result, calls, _, _ = run(**RUNS["guided"])
    for windows, (x, t, scale) in zip(result.stats.window_history, calls, strict=True):
        owners = torch.as_tensor(windows.sample).repeat_interleave(torch.as_tensor(windows.length))
        rows = len(owners)
        assert len(x) == 2 * rows
        assert_same(x[:rows], x[rows:])
        assert_same(t[:rows], t[rows:])
        assert (scale[:rows] == 0.25).all()
        assert_same(scale[rows:], SCALES[owners])


def function_noise(nodes, samples):
    return (0.1 * nodes + samples).sin()[:, None, None].expand(-1, *SHAPE)


def parts(**options):
    """Everything that steps are made of, for one of this module's runs."""
    table = options.pop("table", None) or table_of(DDPM, NUM_STEPS)
    call = {name: options.pop(name, None) for name in ("x_init", "noise", "cond")}
    similar = options.pop("x_trajectory", None)
    options = {"window_size": 5, **options}
    sampler = ParallelSampler(Model(), shape=SHAPE, solver=table, **options)
    request = sampler._request(NUM_SAMPLES, 3, None, call["x_init"], call["noise"], None, None)
    if similar is not None:
        request = sampler._warm(request, similar)
    settings = sampler._settings
    num_slots = num_slots_for(settings, NUM_SAMPLES)
    sizes = scheduler_sizes(settings, NUM_SAMPLES, num_slots)
    return request, settings, make_store(request, settings, num_slots), sizes


def test_what_is_not_linear_or_not_in_memory_goes_step_by_step():
    table = table_of(DDPM, NUM_STEPS)
    ruled = table_of(DDPM, NUM_STEPS)
    object.__setattr__(ruled, "rule", OutputRule(quantile=0.9, max_value=1.5))
    similar = torch.zeros(NUM_SAMPLES, table.num_nodes + 1, *SHAPE)
    for options in (
        {"noise": function_noise},
        {"table": ruled},
        {"x_trajectory": similar},
        {"backend": "reference"},
        {"scheduler_backend": "python"},
    ):
        assert isinstance(make_steps(*parts(**options)), PlannedSteps), options
    for options in ({}, {"backend": "cpp"}, {"scheduler_backend": "cpp"}):
        assert isinstance(make_steps(*parts(**options)), CppSteps), options
    # a function's noise is not read by a solver that adds none
    ode = {"table": table_of(DDIM, NUM_STEPS), "noise": function_noise}
    assert isinstance(make_steps(*parts(**ode)), CppSteps)


def test_outputs_of_another_size_are_refused():
    """Their addresses are handed over: not even one row may be missing."""
    steps = make_steps(*parts())
    steps.begin()
    rows = steps.num_rows
    with pytest.raises(ValueError, match=rf"m must have shape \({rows}, 6\) = \[rows, D\]"):
        steps.correct(torch.zeros(rows - 1, 6), None, 1.0)
    with pytest.raises(ValueError, match=r"m_null must have shape"):
        steps.correct(torch.zeros(rows, 6), torch.zeros(rows, 5), 1.0)
    with pytest.raises(TypeError, match="m must be of a floating-point type"):
        steps.correct(torch.zeros(rows, 6, dtype=torch.int64), None, 1.0)
    assert steps.history() == []
    assert steps.advance() == []


def test_outputs_that_lie_anywhere():
    """Transposed, strided and expanded ones."""
    wanted = None
    for spread in (
        lambda m: m,
        lambda m: m.T.contiguous().T,
        lambda m: torch.stack([m, m], dim=2)[:, :, 0],
        lambda m: torch.cat([m, m], dim=1)[:, :6],
    ):
        steps = make_steps(*parts())
        for _ in range(3):
            x, _, _ = steps.begin()
            steps.correct(spread(0.5 * x), None, 1.0)
            steps.advance()
        x, _, _ = steps.begin()
        wanted = x if wanted is None else wanted
        assert_same(x, wanted)


def test_there_is_no_round_after_the_end():
    request, settings, _, _ = parts()
    rounds = Rounds(request, settings)
    assert isinstance(rounds._steps, CppSteps)
    rounds.cancel()
    assert rounds.has_ended
    assert rounds.num_model_rows == 0
    with pytest.raises(RuntimeError, match="every sample has ended: there is no further round"):
        rounds.begin()
    with pytest.raises(RuntimeError, match="every sample has ended: there is no further round"):
        rounds._steps.correct(torch.zeros(0, 6), None, 1.0)


def test_a_model_may_keep_what_it_is_given():
    """Inputs of a round are not written again."""
    kept, copies = [], []

    def model(x, t):
        kept.append((x, t))
        copies.append((x.clone(), t.clone()))
        return 0.1 * x

    ParallelSampler(
        model, shape=SHAPE, solver=table_of(DDPM, NUM_STEPS), window_size=4, tolerance=0.0
    ).sample(2, seed=1)
    assert len(kept) > 3
    for pair, copied in zip(kept, copies, strict=True):
        for given, before in zip(pair, copied, strict=True):
            assert_same(given, before)
