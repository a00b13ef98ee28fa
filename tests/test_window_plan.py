"""`window_size="auto"`: what is measured, what is predicted from it, and what is chosen."""

from __future__ import annotations

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from ctd_engine import ParallelSampler, SequentialSampler, _auto_window, _row_times
from ctd_engine._auto_window import follow
from ctd_engine._reach import expected_reach, observed_reach
from ctd_engine._row_times import RoundTimes, RowTimes, measure_rows
from ctd_engine.result import RoundRecord
from ctd_engine.window_plan import advance, plan
from small_problems import PROBLEMS, SHAPE, mixture, table_of

TABLE = table_of(PROBLEMS[0], 60)
CPU = torch.device("cpu")
FLAT = RoundTimes(RowTimes((1, 64, 128), (1.0, 1.0, 2.0)), 0.0, 0.0, 0.0)
LINEAR = RoundTimes(RowTimes((1, 2), (1.0, 2.0)), 0.0, 0.0, 0.0)


def auto(model=None, **options):
    options = {"tolerance": 0.1, "dtype": torch.float64, **options}
    return ParallelSampler(model or mixture(TABLE), shape=SHAPE, solver=TABLE, **options)


def with_times(monkeypatch, times):
    monkeypatch.setattr(_auto_window, "_measure", lambda request, settings, run: times)


def test_row_times_are_linear_between_and_beyond():
    times = RowTimes((1, 2, 4), (3.0, 5.0, 6.0))
    assert [times(rows) for rows in (1, 1.5, 2, 3, 4, 8)] == [3.0, 4.0, 5.0, 5.5, 6.0, 8.0]
    assert RowTimes((1,), (2.0,))(3) == 6.0
    # a measurement that came out too low does not make more rows cheaper
    assert RowTimes((1, 2), (3.0, 2.0))(10) == 3.0


@pytest.mark.parametrize(
    ("seconds", "sizes"),
    [
        # flat: every size, and the largest
        (lambda rows: 1.0, (1, 2, 4, 8, 16, 20)),
        # linear from the start: two doublings tell
        (lambda rows: float(rows), (1, 2, 4)),
        # flat up to 4 rows, then linear
        (lambda rows: max(rows, 4.0), (1, 2, 4, 8, 16)),
    ],
)
def test_measuring_stops_where_time_is_linear(monkeypatch, seconds, sizes):
    now = 0.0
    called = []

    def call(rows):
        nonlocal now
        called.append(rows)
        # the first call of a size sets something up
        now += seconds(rows) * 1e-3 * (5.0 if called.count(rows) == 1 else 1.0)

    monkeypatch.setattr(_row_times._time, "perf_counter", lambda: now)
    times = measure_rows(call, 20, CPU)
    assert times.rows == sizes
    assert times.seconds == pytest.approx([1e-3 * seconds(rows) for rows in sizes])


def test_a_long_call_is_measured_once(monkeypatch):
    now = 0.0

    def call(rows):
        nonlocal now
        now += 10.0 * rows

    monkeypatch.setattr(_row_times._time, "perf_counter", lambda: now)
    assert measure_rows(call, 64, CPU) == RowTimes((1, 2, 4), (10.0, 20.0, 40.0))
    # after one call that warms up
    assert now == 140.0


def test_a_cold_start_is_not_a_measurement(monkeypatch):
    now, is_cold = 0.0, True

    def call(rows):
        nonlocal now, is_cold
        now += 0.4 * is_cold + 1e-3 * rows
        is_cold = False

    monkeypatch.setattr(_row_times._time, "perf_counter", lambda: now)
    assert measure_rows(call, 64, CPU).seconds == pytest.approx((1e-3, 2e-3, 4e-3))


def test_prediction_of_every_window():
    predicted = plan(FLAT, num_samples=4, num_nodes=1000, max_rows=128, reach=50.0)
    assert [o.window_size for o in predicted.options[:6]] == [1, 2, 3, 4, 6, 8]
    assert predicted.sequential.rounds == 1000
    assert predicted.sequential.wall_time_s == pytest.approx(1000.0)
    (of_16,) = (o for o in predicted.options if o.window_size == 16)
    moved = 50.0 * (1.0 - math.exp(-16.0 / 50.0))
    assert of_16.rows == 64
    assert of_16.rounds == pytest.approx(1 + 999 / moved)
    assert of_16.evaluations == pytest.approx(16 * of_16.rounds)
    assert of_16.wall_time_s == pytest.approx(of_16.rounds)
    # free rows are used up, and no more
    assert predicted.best is of_16
    assert str(predicted).count("<- fastest") == 1
    assert len(str(predicted).splitlines()) == 1 + len(predicted.options)


def test_more_samples_than_fit_go_in_waves():
    predicted = plan(FLAT, num_samples=8, num_nodes=100, max_rows=64, reach=30.0)
    (of_32,) = (o for o in predicted.options if o.window_size == 32)
    assert of_32.rows == 64
    assert of_32.rounds == pytest.approx(4 * (1 + 99 / advance(32, 30.0)))


def test_padding_costs_as_much_as_rows():
    def padded(rows):
        return 1 << (rows - 1).bit_length()

    predicted = plan(LINEAR, num_samples=3, num_nodes=99, max_rows=64, reach=9.0, padded=padded)
    assert [o.rows for o in predicted.options[:4]] == [4, 8, 16, 16]
    assert [o.round_time_s for o in predicted.options[:4]] == [4.0, 8.0, 16.0, 16.0]


def test_sequential_where_every_row_costs_the_same():
    predicted = plan(LINEAR, num_samples=1, num_nodes=1000, max_rows=256, reach=60.0)
    assert predicted.is_sequential
    assert predicted.best.evaluations == 1000


def test_windows_converge_whole_when_short_and_as_far_as_they_reach_when_long():
    assert advance(1, 50.0) == 1.0
    assert advance(5, 50.0) == pytest.approx(5.0, rel=0.06)
    assert advance(1e6, 50.0) == pytest.approx(50.0)
    assert expected_reach(1000, 0.1) > expected_reach(1000, 0.01) > expected_reach(1000, 0.0) > 1


def test_reach_is_read_off_a_history():
    reach, start, history = 20.0, np.zeros(3), []
    for length in (1, 8, 16, 32, 64) * 4:
        lengths = np.full(3, length)
        history.append(RoundRecord(np.arange(3), start.astype(int), lengths))
        start = start + [advance(length, reach)] * 3
    assert observed_reach(history) == pytest.approx(reach, rel=0.1)
    assert observed_reach(history[:2]) is None


def test_auto_follows_the_plan_and_learns(monkeypatch):
    with_times(monkeypatch, FLAT)
    sampler = auto()
    first = sampler.sample(2, seed=0)
    assert first.all_converged
    planned = first.stats.plan.best.window_size
    assert planned > 4
    longest = max(int(r.length.max()) for r in first.stats.window_history)
    assert longest == planned
    assert first.stats.plan.reach == expected_reach(60, 0.1)
    again = sampler.plan(2)
    assert again.reach == observed_reach(first.stats.window_history) != first.stats.plan.reach


def test_settings_that_follow_a_plan(monkeypatch):
    with_times(monkeypatch, FLAT)
    sampler = auto()
    chosen = sampler.plan()
    settings = follow(sampler._settings, chosen)
    first = chosen.best.window_size
    assert settings.first_window == settings.window_size == first
    ratio = first / advance(first, chosen.reach)
    assert settings.window_ratio / 256 == pytest.approx(ratio, rel=2 ** (1 / 8) - 1)
    # a little more or less reach makes no new kind of run
    near = follow(sampler._settings, replace(chosen, reach=chosen.reach * 1.01))
    assert near == settings
    alone = replace(chosen, options=chosen.options[:1])
    settings = follow(sampler._settings, alone)
    assert (settings.window_size, settings.window_ratio) == (1, 0)


def test_auto_runs_sequentially_and_says_so_once(monkeypatch, caplog):
    with_times(monkeypatch, LINEAR)
    sampler = auto()
    with caplog.at_level(logging.WARNING, logger="ctd_engine"):
        result = sampler.sample(2, seed=5)
        sampler.sample(2, seed=6)
    assert result.stats.rounds == 60
    oracle = SequentialSampler(
        mixture(TABLE), shape=SHAPE, solver=TABLE, dtype=torch.float64
    ).sample(2, seed=5)
    assert torch.equal(result.samples, oracle.samples)
    (record,) = caplog.records
    assert "sequential sampling is predicted to be fastest here, 120 s" in record.getMessage()


def test_auto_equals_sequential_at_tolerance_0():
    result = auto(tolerance=0.0).sample(3, seed=1)
    oracle = SequentialSampler(mixture(TABLE), shape=SHAPE, solver=TABLE, dtype=torch.float64)
    assert (result.samples - oracle.sample(3, seed=1).samples).abs().max() <= 1e-9


def test_a_model_is_measured_once_per_kind_of_call():
    exact, calls = mixture(TABLE), 0

    def model(x, t, shift=None):
        nonlocal calls
        calls += 1
        return exact(x, t)

    auto(model).plan(2)
    measured = calls
    assert measured > 5
    auto(model).plan(3)
    assert calls == measured
    for options, cond in (({"dtype": torch.float32}, None), ({}, {"shift": torch.zeros(2)})):
        before = calls
        auto(model, **options).plan(2, cond=cond)
        assert calls > before


def test_auto_needs_no_weak_reference():
    class Slotted:
        __slots__ = ("exact",)

        def __call__(self, x, t):
            return self.exact(x, t)

    model = Slotted()
    model.exact = mixture(TABLE)
    assert auto(model).sample(1, seed=0).all_converged


def test_measuring_leaves_no_trace(monkeypatch):
    """Neither in the samples nor in torch's generator."""
    with_times(monkeypatch, FLAT)
    want = auto().sample(2, seed=3).samples
    monkeypatch.undo()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    sampler = auto()
    sampler.plan(2)
    assert torch.equal(torch.get_rng_state(), state)
    with_times(monkeypatch, FLAT)
    assert torch.equal(auto().sample(2, seed=3).samples, want)


def test_lockstep_needs_a_fixed_window():
    with pytest.raises(ValueError, match='lockstep needs a fixed window_size, got "auto"'):
        auto(lockstep=True)


def test_samplers_in_threads_do_not_disturb_each_other():
    """One sampler shared by threads and one for each give what they give alone."""
    shared = auto(window_size=9, max_rows=20)
    alone = [shared.sample(3, seed=seed).samples for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: shared.sample(3, seed=seed).samples, range(8)))
        apart = list(
            pool.map(
                lambda seed: auto(window_size=9, max_rows=20).sample(3, seed=seed).samples, range(8)
            )
        )
    for one, two, three in zip(alone, together, apart, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
