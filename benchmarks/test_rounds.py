"""Rounds and evaluations against ParaDiGMS on the digits problem; prints the README's table.

pytest benchmarks/test_rounds.py --benchmark-only -s
"""

from __future__ import annotations

import statistics

import pytest

from digits_problem import CASES, NUM_SAMPLES, run

SEEDS = range(5)


# what stands in the columns of the table
COLUMNS = {
    "ParaDiGMS": {"paradigms": True},
    "ours": {"paradigms": False},
    "ours, secant, far_stride 8": {"paradigms": False, "method": "secant", "far_stride": 8},
}


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_digits(benchmark, capsys, case, column):
    results = []
    seeds = iter(list(SEEDS) * 2)
    benchmark.pedantic(
        lambda: results.append(run(case, seed=next(seeds), **COLUMNS[column])),
        rounds=len(SEEDS),
        iterations=1,
    )
    rounds = [result.stats.rounds for result in results]
    evaluations = [result.stats.evaluations / NUM_SAMPLES for result in results]
    benchmark.extra_info.update(rounds=rounds, evaluations_per_sample=evaluations)
    with capsys.disabled():
        print(
            f"\n| {case.name} | {column} "
            f"| {statistics.mean(rounds):.1f} | {statistics.mean(evaluations):.0f} "
            f"| {statistics.mean(r.stats.wall_time_s for r in results):.2f} s |"
        )
