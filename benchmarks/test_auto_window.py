"""`window_size="auto"` against every fixed window, in wall time.

pytest benchmarks/test_auto_window.py --benchmark-only -s                    four fixed windows
pytest benchmarks/test_auto_window.py --benchmark-only --benchmark-full -s   all, and sequential
"""

from __future__ import annotations

import statistics

import pytest

from window_models import FIXED_WINDOWS, PROBLEMS, Problem

# the best ones of all three problems are among them; the shortest take long
FEW_WINDOWS = (4, 16, 32, 64)
TURNS = 5
LIMIT = 1.15


def wall_times(
    problem: Problem, sizes: tuple[int | str, ...], num_turns: int = TURNS
) -> dict[int | str, list[float]]:
    """Seconds of every window size by turn; what "auto" measures once is not in them."""
    samplers = {size: problem.sampler(size) for size in sizes}
    times: dict[int | str, list[float]] = {size: [] for size in samplers}
    # windows take turns, so that a disturbance meets them all
    for turn in range(num_turns + 1):
        for size, sampler in samplers.items():
            result = sampler.sample(problem.num_samples, seed=turn, cond=problem.cond)
            assert result.all_converged
            if turn > 0:
                times[size].append(result.stats.wall_time_s)
    return times


@pytest.mark.parametrize("name", PROBLEMS)
def test_auto_is_near_the_best(benchmark, capsys, is_full, name):
    problem = PROBLEMS[name]()
    windows = FIXED_WINDOWS if is_full else FEW_WINDOWS
    sizes = (*windows, "auto", *(["sequential"] if is_full else []))
    times = benchmark.pedantic(wall_times, args=(problem, sizes), rounds=1)
    medians = {size: statistics.median(values) for size, values in times.items()}
    best = min(windows, key=medians.__getitem__)
    ratio = medians["auto"] / medians[best]
    plan = problem.sampler("auto").plan(problem.num_samples, cond=problem.cond)
    benchmark.extra_info.update(seconds={str(k): v for k, v in medians.items()}, ratio=ratio)
    with capsys.disabled():
        listed = ", ".join(f"{size}: {seconds:.3f}" for size, seconds in medians.items())
        print(f"\n{name}, median seconds by window: {listed}")
        print(f"auto takes {ratio:.2f} of the best fixed window, {best}\n{plan}")
    assert ratio <= LIMIT
