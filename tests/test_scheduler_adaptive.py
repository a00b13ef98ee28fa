"""Windows that follow the smoothed advance of their sample, C++ and Python."""

from __future__ import annotations

import pytest

from scheduler_problem import BACKENDS, make, step


def play(scheduler, advance, num_rounds):
    """Window lengths of a sample that advances by min(advance, length) every round."""
    lengths = []
    for _ in range(num_rounds):
        lengths += scheduler.plan().length.tolist()
        step(scheduler, [advance])
    return lengths


ONE = dict(num_samples=1, num_slots=1, num_nodes=10**6, max_rows=10**6, max_rounds=10**6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_adaptive_windows_grow_while_all_is_accepted(backend):
    sizes = dict(ONE, window_size=200, first_length=1, window_ratio=512, first_window=8)
    lengths = play(make(backend, **sizes), 10**6, 20)
    # the first round tells nothing; then reach 4 -> (12 + 16) / 4 = 7, so the next window is 14
    assert lengths[:4] == [1, 8, 14, 25]
    assert lengths == sorted(lengths)
    assert lengths[-1] == 200


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ratio", [256, 400, 512, 1000])
def test_adaptive_windows_shrink_to_the_ratio_times_the_advance(backend, ratio):
    sizes = dict(ONE, window_size=200, first_length=200, window_ratio=ratio)
    lengths = play(make(backend, **sizes), 10, 60)
    assert lengths[0] == 200
    if ratio == 256:
        # a window as long as the advance is accepted whole, so it grows again
        assert {10, 11} <= set(lengths[30:]) <= set(range(10, 14))
    else:
        assert lengths == sorted(lengths, reverse=True)
        assert lengths[-1] == -(-ratio * 10 // 256)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_window_adapts_alone_and_the_last_one_ends_at_the_last_node(backend):
    sizes = dict(num_nodes=60, window_size=40, first_length=20, max_rounds=100)
    scheduler = make(backend, num_samples=2, num_slots=2, **sizes, window_ratio=512)
    step(scheduler, [1, 20])
    # reach 20 -> 15.25 and 25
    assert scheduler.plan().length.tolist() == [31, 40]
    step(scheduler, [1, 39])
    assert scheduler.plan().length.tolist() == [24, 1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("first_window", [1, 2, 3, 7, 64, 100])
@pytest.mark.parametrize("ratio", [256, 257, 511, 1000, 65536])
def test_the_first_whole_window(backend, first_window, ratio):
    sizes = dict(ONE, window_size=100, first_length=1, window_ratio=ratio)
    scheduler = make(backend, **sizes, first_window=first_window)
    assert play(scheduler, 1, 2) == [1, first_window]


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_ratio_windows_keep_their_length(backend):
    sizes = dict(ONE, window_size=20, first_length=20)
    assert play(make(backend, **sizes, first_window=3), 2, 9) == [20] * 9
