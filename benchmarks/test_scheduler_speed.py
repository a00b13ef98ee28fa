"""Decisions per second of the window scheduler, C++ and Python.

pytest benchmarks/test_scheduler_speed.py --benchmark-only
"""

from __future__ import annotations

import pytest

from ctd_engine import _ext
from ctd_engine.scheduling import make_scheduler

NUM_NODES, NUM_ROUNDS = 1000, 10


@pytest.mark.parametrize("backend", ["cpp", "python"])
@pytest.mark.parametrize("num_samples, window_size", [(1000, 16), (1000, 64), (4000, 16)])
def test_decisions_per_second(benchmark, backend, num_samples, window_size):
    """A decision is one window of one round: what to evaluate, and where it goes next."""
    if backend == "cpp" and _ext.unavailable_reason() is not None:
        pytest.skip(f"the extension is not built: {_ext.unavailable_reason()}")

    def set_up():
        scheduler = make_scheduler(
            num_samples=num_samples,
            num_nodes=NUM_NODES,
            window_size=window_size,
            # three quarters of what is wanted, so that rows are shared
            max_rows=num_samples * window_size * 3 // 4,
            num_slots=num_samples,
            first_length=window_size,
            max_rounds=NUM_NODES,
            backend=backend,
        )
        return (scheduler,), {}

    def play(scheduler):
        for _ in range(NUM_ROUNDS):
            plan = scheduler.plan()
            # every window has at least half its rows here, so all advances are in range
            accepted = 1 + plan.sample % (window_size // 2)
            assert scheduler.step(accepted, plan.length) == []
        return scheduler

    scheduler = benchmark.pedantic(play, setup=set_up, rounds=10, warmup_rounds=1)
    assert scheduler.round == NUM_ROUNDS
    if benchmark.stats is not None:
        decisions = num_samples * NUM_ROUNDS
        benchmark.extra_info["decisions_per_s"] = decisions / benchmark.stats.stats.median
