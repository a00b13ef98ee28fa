"""Rounds and evaluations on the digits problem: ours within its bounds, ParaDiGMS's as published.

Both are means over the five seeds, and from the draws, of the published table.
"""

from __future__ import annotations

import pytest

from digits_problem import CASES, mean_cost

NAMES = [case.name for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_ours(case):
    rounds, evaluations = mean_cost(case, paradigms=False, seeds=range(5))
    assert rounds <= case.max_rounds
    assert evaluations <= case.max_evaluations


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_paradigms_is_reproduced(case):
    """G = 1, copied points, one window for all: the published mean to its last digit."""
    rounds, evaluations = mean_cost(case, paradigms=True, seeds=range(5))
    assert rounds == pytest.approx(case.paradigms_rounds, abs=0.05)
    assert evaluations == pytest.approx(case.paradigms_evaluations, abs=0.5)
