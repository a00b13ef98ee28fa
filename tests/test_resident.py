"""Rounds with the scheduler beside the model decide and give what rounds on the host do.

On a CPU the same loop runs with the scheduler's host build and the kernels in the interpreter,
without graphs; on a GPU (marked) as users run it.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from ctd_engine import ParallelSampler, _ext
from ctd_engine._graphs import GraphSwitch
from ctd_engine._resident import row_buckets
from ctd_engine._resident_run import KeptRounds, make_rounds, reasons_against, run_resident
from ctd_engine._rounds import run_rounds
from ctd_engine._run_settings import REASONS
from ctd_engine.ops._dispatch import triton_unavailable_reason
from small_problems import PROBLEMS, SHAPE, mixture, table_of

if triton_unavailable_reason() is not None:
    pytest.skip(f"no Triton: {triton_unavailable_reason()}", allow_module_level=True)
if _ext.unavailable_reason() is not None and os.environ.get("CTD_REQUIRE_EXT") != "1":
    pytest.skip(f"no extension: {_ext.unavailable_reason()}", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


def make_sampler(model=None, problem=PROBLEMS[0], num_steps=10, **options):
    table = table_of(problem, num_steps)
    options = {"window_size": 4, "tolerance": 0.05, "backend": "triton", **options}
    return ParallelSampler(
        model or mixture(table),
        shape=SHAPE,
        solver=table,
        dtype=torch.float64,
        device=DEVICE,
        **options,
    )


class Shifted(torch.nn.Module):
    """The exact model and a shift, with a weight."""

    def __init__(self):
        super().__init__()
        self.exact = mixture(table_of(PROBLEMS[0], 10))
        self.scale = torch.nn.Parameter(torch.tensor(0.1, device=DEVICE), requires_grad=False)

    def forward(self, x, t, shift):
        return self.exact(x, t) + self.scale * shift[:, None, None]


def both(sampler, num_samples, *, kept=None, callback=None, settings=None, **arguments):
    """Outcomes of the two loops for one request."""
    names = ("seed", "seeds", "x_init", "noise", "cond", "guidance_scale")
    given = {name: arguments.get(name) for name in names}
    settings = settings or sampler._settings
    outcomes = []
    for how in ("host", "resident"):
        request = sampler._request(num_samples, *given.values())
        with torch.inference_mode():
            # on a CPU the interpreter is slow, and the reference gives the same numbers
            plain = replace(settings, backend="reference" if DEVICE == "cpu" else "triton")
            outcomes.append(
                run_rounds(request, plain, callback=callback)
                if how == "host"
                else run_resident(request, settings, kept or KeptRounds(), callback=callback)
            )
    return outcomes


def assert_alike(host, resident):
    torch.testing.assert_close(resident.samples, host.samples, rtol=0.0, atol=1e-12, equal_nan=True)
    # samples take slots in another order when several end at once, so slots are not compared
    assert [end._replace(slot=0) for end in resident.ends] == [
        end._replace(slot=0) for end in host.ends
    ]
    assert resident.evaluations == host.evaluations
    assert len(resident.history) == len(host.history)
    for one, other in zip(resident.history, host.history, strict=True):
        for name in ("sample", "start", "length"):
            assert getattr(one, name).tolist() == getattr(other, name).tolist()


@pytest.mark.parametrize("number", [0, 2, 8, 10, 13])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guess": "copy"},
        {"guess": "zero", "method": "gaussian"},
        {"guess": "prior", "max_rows": 7},
        {"max_rows": 7},
        {"method": "secant", "max_rows": 7},
    ],
    ids=str,
)
def test_decides_as_the_host_does(number, options):
    assert_alike(*both(make_sampler(problem=PROBLEMS[number], **options), 3, seed=1))


@pytest.mark.parametrize("window_size", [1, 3, 100])
def test_any_window(window_size):
    assert_alike(*both(make_sampler(window_size=window_size), 5, seed=2))


@pytest.mark.parametrize("guess", ["predicted", "zero", "prior"])
def test_more_samples_than_slots(guess):
    host, resident = both(make_sampler(max_rows=8, guess=guess), 9, seed=3)
    assert_alike(host, resident)
    assert {REASONS[end.reason].name for end in resident.ends} == {"CONVERGED"}


def test_windows_that_follow_their_samples():
    sampler = make_sampler(num_steps=24, max_rows=20)
    settings = replace(sampler._settings, window_size=10, first_window=5, window_ratio=400)
    host, resident = both(sampler, 4, seed=0, settings=settings)
    assert_alike(host, resident)
    assert len({int(n) for record in resident.history for n in record.length}) > 3


def test_a_similar_trajectory():
    """More samples than slots; buffers that a trajectory was given to are not used again."""
    sampler, kept = make_sampler(num_steps=6, max_rows=8), KeptRounds()
    generator = torch.Generator().manual_seed(0)
    trajectory = torch.randn(3, 7, 6, generator=generator, dtype=torch.float64).to(DEVICE)
    given = (3, 3, None, None, None, None, None)
    request = replace(sampler._request(*given), trajectory=trajectory)
    settings = replace(sampler._settings, is_warm=True)
    with torch.inference_mode():
        plain = replace(settings, backend="reference" if DEVICE == "cpu" else "triton")
        assert_alike(run_rounds(request, plain), run_resident(request, settings, kept))
    assert not kept._kept


def test_lockstep():
    assert_alike(*both(make_sampler(lockstep=True, guess="copy"), 3, seed=1))


@pytest.mark.parametrize("max_rounds", [1, 3])
def test_max_rounds(max_rounds):
    host, resident = both(make_sampler(max_rounds=max_rounds, max_rows=8), 5, seed=1)
    assert_alike(host, resident)
    assert {REASONS[end.reason].name for end in resident.ends} == {"MAX_ROUNDS"}
    assert torch.isfinite(resident.samples).all()


def test_nan_stays_in_its_sample():
    exact = mixture(table_of(PROBLEMS[0], 10))

    def model(x, t, index):
        return torch.where((index == 1)[:, None, None], torch.nan, exact(x, t))

    cond = {"index": torch.arange(4, device=DEVICE)}
    host, resident = both(make_sampler(model, max_rows=8), 4, seed=1, cond=cond)
    assert_alike(host, resident)
    assert [REASONS[end.reason].name for end in resident.ends] == [
        "CONVERGED",
        "DIVERGED",
        "CONVERGED",
        "CONVERGED",
    ]
    assert resident.samples[1].isnan().all()
    assert resident.samples[[0, 2, 3]].isfinite().all()


def test_guidance_and_conditioning():
    exact = mixture(table_of(PROBLEMS[0], 10))

    def model(x, t, shift):
        return exact(x, t) + 0.1 * shift[:, None, None]

    sampler = make_sampler(model, null_cond={"shift": torch.zeros(1, device=DEVICE)})
    cond = {"shift": torch.tensor([1.0, -2.0], device=DEVICE)}
    assert_alike(*both(sampler, 2, seed=1, cond=cond, guidance_scale=2.0))


@pytest.mark.parametrize("how", ["tensor", "callable"])
def test_explicit_noise_and_start(how):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(10, 3, *SHAPE, generator=generator, dtype=torch.float64).to(DEVICE)
    start = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64).to(DEVICE)
    given = noise if how == "tensor" else lambda nodes, samples: noise[nodes, samples]
    assert_alike(*both(make_sampler(max_rows=8), 3, noise=given, x_init=start))


def test_a_callable_for_noise_runs_without_graphs_and_says_so(caplog):
    def noise(nodes, samples):
        return torch.zeros(len(nodes), *SHAPE, dtype=torch.float64, device=DEVICE)

    sampler = make_sampler(max_rows=8)
    settings = replace(sampler._settings, graphs=GraphSwitch(True))
    with caplog.at_level(logging.WARNING, logger="ctd_engine"):
        assert_alike(*both(sampler, 2, seed=0, noise=noise, settings=settings))
    (record,) = caplog.records
    assert "without CUDA graphs" in record.getMessage()
    assert "noise is a callable" in record.getMessage()
    # other calls of the sampler are recorded as before
    assert settings.graphs.is_on


def test_cancelled():
    told = []

    def callback(progress):
        told.append((progress.round, progress.evaluations))
        return progress.round == 3

    host, resident = both(make_sampler(max_rows=4), 3, seed=0, callback=callback)
    assert told[:3] == told[3:]
    assert [REASONS[end.reason].name for end in resident.ends] == ["CANCELLED"] * 3
    assert len(host.history) == 3
    # a round that was under way went on, and counts
    assert len(resident.history) in (3, 4)
    assert resident.ends[0].rounds == len(resident.history)
    assert resident.evaluations == sum(int(r.length.sum()) for r in resident.history)
    assert resident.samples[0].isfinite().all()
    assert resident.samples[2].isnan().all()


def test_buffers_are_used_again_and_nothing_of_the_past_is_left():
    model = Shifted()
    sampler, kept = make_sampler(model, max_rows=8), KeptRounds(most=1)
    first = torch.tensor([1.0, torch.nan, 0.0], device=DEVICE)
    for seed, shift in ((0, first), (1, -first), (2, first.nan_to_num())):
        assert_alike(*both(sampler, 3, seed=seed, cond={"shift": shift}, kept=kept))
    (rounds,) = kept._kept.values()
    # another form of request gets its own, and the oldest goes
    assert_alike(*both(sampler, 2, seed=0, cond={"shift": first[:2]}, kept=kept))
    (other,) = kept._kept.values()
    assert other is not rounds
    # a recording would read the weights where they were
    model.scale = torch.nn.Parameter(torch.tensor(0.2, device=DEVICE), requires_grad=False)
    assert_alike(*both(sampler, 2, seed=0, cond={"shift": first[:2]}, kept=kept))
    (moved,) = kept._kept.values()
    assert moved is not other


def test_samples_outlive_the_buffers():
    sampler, kept = make_sampler(Shifted()), KeptRounds()
    cond = {"shift": torch.zeros(2, device=DEVICE)}
    _, one = both(sampler, 2, seed=0, cond=cond, kept=kept)
    before = one.samples.clone()
    both(sampler, 2, seed=9, cond=cond, kept=kept)
    assert torch.equal(one.samples, before)


def test_a_function_is_recorded_anew_every_time():
    """Nothing tells whether the weights that it uses have moved."""
    kept = KeptRounds()
    both(make_sampler(), 1, seed=0, kept=kept)
    assert not kept._kept


def test_buckets_are_powers_of_two_and_the_most():
    assert row_buckets(1) == [1]
    assert row_buckets(8) == [1, 2, 4, 8]
    assert row_buckets(11) == [1, 2, 4, 8, 11]


def test_padding_never_counts():
    """Rows beyond the windows' go through the model, and nothing comes of them."""
    exact, rows = mixture(table_of(PROBLEMS[0], 10)), []

    def model(x, t):
        rows.append(len(x))
        return exact(x, t)

    host, resident = both(make_sampler(model, window_size=5, max_rows=11), 2, seed=1)
    assert_alike(host, resident)
    resident_rows = rows[len(host.history) :]
    assert set(resident_rows) <= set(row_buckets(11))
    assert sum(resident_rows) > resident.evaluations
    # at most one round is enqueued after the last one
    assert 0 <= len(resident_rows) - len(resident.history) <= 1
    assert resident.padding_rows == sum(resident_rows) - resident.evaluations


def test_host_decides_without_a_gpu():
    if DEVICE == "cuda":
        assert reasons_against(make_sampler()._settings) == []
        return
    assert reasons_against(make_sampler()._settings) == ["device is cpu"]
    with pytest.raises(RuntimeError, match='"cuda" cannot run here\n    - device is cpu'):
        make_sampler(scheduler_backend="cuda")
    with pytest.raises(ValueError, match="scheduler_backend must be one of"):
        make_sampler(scheduler_backend="fast")


def test_record_of_a_round_lists_active_windows_only():
    _, resident = both(make_sampler(max_rows=8), 3, seed=3)
    for record in resident.history:
        assert (record.sample >= 0).all()
        assert np.all(record.length > 0)


def test_a_callable_noise_says_once_that_it_is_not_recorded(caplog):
    sampler = make_sampler()
    settings = replace(sampler._settings, graphs=GraphSwitch(True))
    with caplog.at_level(logging.WARNING, logger="ctd_engine"):
        for seed in range(3):
            noise = lambda nodes, rows: torch.zeros(len(nodes), *SHAPE)  # noqa: E731
            request = sampler._request(1, seed, None, None, noise, None, None)
            assert not make_rounds(request, settings).switch.is_on
    (record,) = caplog.records
    assert "noise is a callable" in record.getMessage()
    # other calls of this sampler still record
    request = sampler._request(1, 0, None, None, None, None, None)
    assert make_rounds(request, settings).switch.is_on
