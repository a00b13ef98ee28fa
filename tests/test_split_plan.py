"""Whether ranks share samples or rows: the rule without measurements, and the one with them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ctd_engine import ParallelSampler, _over_ranks
from ctd_engine._over_ranks import OverRanks, Way
from ctd_engine._row_times import RoundTimes, RowTimes
from ctd_engine._split_plan import LinkTimes, few_are_idle, over_ranks
from small_problems import PROBLEMS, SHAPE, mixture, table_of

TABLE = table_of(PROBLEMS[0], 60)
SIZE = 4
FAST, SLOW = LinkTimes(1e-3, 0.0), LinkTimes(100.0, 0.0)
# seconds of a call: a second whatever the rows, or one per row
FLAT = RoundTimes(RowTimes((1, 64), (1.0, 1.0)), 0.0, 0.0, 0.0)
LINEAR = RoundTimes(RowTimes((1, 2), (1.0, 2.0)), 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("num_samples", "size", "expected"),
    [(1, 2, False), (2, 2, True), (3, 2, False), (4, 3, False), (5, 3, True), (64, 8, True)],
)
def test_samples_are_shared_where_they_divide(num_samples, size, expected):
    """At most a quarter more than an even share: 4 of 3 leaves two ranks idle half the time."""
    assert few_are_idle(num_samples, size) == expected


def test_time_of_a_call_whose_rows_are_split():
    link = LinkTimes(0.5, 0.01)
    times = over_ranks(LINEAR, link, SIZE, 1, row_bytes=3)
    # the longest block has three rows; what is gathered is nine rows of three bytes
    assert times(9, 1.0) == pytest.approx(3.0 + 0.5 + 0.01 * 27)
    guided = over_ranks(LINEAR, link, SIZE, 2, row_bytes=3)
    # one point is two model rows, each half of what was timed
    assert guided(1, 1.0) == pytest.approx(0.5 + 0.5 + 0.01 * 6)
    own = over_ranks(RoundTimes(LINEAR.model, 7.0, 2.0, 1.0), link, SIZE, 1, 0)
    # every rank does all of the other work
    assert own(8, 4.0) == pytest.approx(2.0 + 0.5 + 7.0 + 4 * 2.0 + 8 * 1.0)


def plan(monkeypatch, times, link, num_samples, *, split="auto", has_callback=False):
    """The way that four ranks choose, and the plan, with these times."""
    ranks = SimpleNamespace(
        rank=0, size=SIZE, settle=lambda error, told: [told] * SIZE, device=torch.device("cpu")
    )
    monkeypatch.setattr(_over_ranks, "Ranks", lambda group, device: ranks)
    monkeypatch.setattr(_over_ranks, "measure_link", lambda ranks: link)
    monkeypatch.setattr(_over_ranks, "round_times", lambda *arguments: times)
    monkeypatch.setattr(_over_ranks.dist, "get_world_size", lambda: SIZE)
    alone = ParallelSampler(mixture(TABLE), shape=SHAPE, solver=TABLE)
    request = alone._request(num_samples, 0, None, None, None, None, None)
    shared = OverRanks(object(), split, alone._settings, "auto")
    way = Way(alone._settings, False, is_apart=True)
    return shared.plan(alone.model, request, way, 8.0, lambda *run: None, has_callback)


def test_one_sample_is_split_by_rows_where_the_link_is_fast(monkeypatch):
    way, chosen = plan(monkeypatch, LINEAR, FAST, 1)
    assert not way.is_apart
    assert chosen.best.window_size >= SIZE
    way, chosen = plan(monkeypatch, LINEAR, SLOW, 1)
    assert way.is_apart
    assert chosen.is_sequential


def test_as_many_samples_as_ranks_are_shared_whole(monkeypatch):
    for times in (FLAT, LINEAR):
        way, chosen = plan(monkeypatch, times, FAST, SIZE)
        assert way.is_apart
        # for a rank's part, with its part of the rows
        assert chosen.num_samples == 1
        assert way.settings.max_rows == 256 // SIZE


def test_samples_that_do_not_divide_are_split_by_rows_where_the_model_is_full(monkeypatch):
    way, chosen = plan(monkeypatch, LINEAR, FAST, SIZE + 1)
    assert not way.is_apart
    assert chosen.num_samples == SIZE + 1
    assert way.settings.max_rows == 256


def test_what_is_asked_for_is_not_weighed(monkeypatch):
    assert not plan(monkeypatch, FLAT, SLOW, SIZE, split="rows")[0].is_apart
    assert plan(monkeypatch, LINEAR, FAST, 1, split="samples")[0].is_apart
    assert not plan(monkeypatch, FLAT, SLOW, SIZE, has_callback=True)[0].is_apart
