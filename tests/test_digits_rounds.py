"""Rounds and evaluations on the digits problem: ours within its bounds, ParaDiGMS's as published.

Ours is the mean of 5 seeds. ParaDiGMS's numbers of one set of five seeds scatter by up to 8 %, so
they are compared as means of 25 seeds where a run is short.
"""

from __future__ import annotations

import math
import statistics

import pytest

from digits_problem import CASES, mean_cost, run

NAMES = [case.name for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_ours(case):
    rounds, evaluations = mean_cost(case, paradigms=False, seeds=range(5))
    assert rounds <= case.max_rounds
    assert evaluations <= case.max_evaluations


@pytest.mark.parametrize("case", CASES[:4], ids=NAMES[:4])
def test_paradigms_is_reproduced(case):
    seeds = range(5) if case.num_steps == 1000 else range(25)
    rounds, _ = mean_cost(case, paradigms=True, seeds=seeds)
    assert rounds == pytest.approx(case.paradigms_rounds, rel=0.05)


def test_paradigms_at_25_steps_is_within_the_scatter_of_five_seeds():
    """7.45 +- 0.04 over 200 seeds; means of five lie between 7.0 and 8.0, 7.0 was published.

    One run scatters by 0.61 rounds, a mean of five by 0.27: 5 % of 7 is narrower than that.
    """
    seeds = range(25)
    each = [run(CASES[4], paradigms=True, seed=seed).stats.rounds for seed in seeds]
    scatter_of_five = statistics.stdev(each) / math.sqrt(5)
    assert abs(statistics.mean(each) - CASES[4].paradigms_rounds) < 2 * scatter_of_five
