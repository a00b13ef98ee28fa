"""Rounds and evaluations on the digits problem: ours within its bounds, ParaDiGMS's as published.

Both are means over the five seeds, and from the draws, of the published table.
"""

from __future__ import annotations

import pytest
import torch

from ctd_engine import ParallelSampler, SequentialSampler, schedules, solvers
from ctd_engine.exact import MixtureModel
from digits_problem import CASES, digits, mean_cost

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


@pytest.mark.parametrize("std", [0.1, 0.3])
def test_empirical_data_of_either_width(std):
    """Exact at tolerance 0; at 0.03 near the sequential samples, in half of the rounds or fewer.

    At 0.1 a sample may end at another image: the exact denoiser decides between them abruptly.
    """
    table = solvers.ddim(schedules.linear_beta(), 60, eta=1.0)
    model = MixtureModel(table, digits(), std)
    shared = dict(shape=(64,), solver=table, dtype=torch.float64)
    oracle = SequentialSampler(model, **shared).sample(4, seed=0)
    exact, near = (
        ParallelSampler(model, **shared, window_size=60, tolerance=tolerance).sample(4, seed=0)
        for tolerance in (0.0, 0.03)
    )
    assert (exact.samples - oracle.samples).abs().max() <= 1e-9
    assert exact.stats.rounds <= 60
    assert near.stats.rounds <= 30
    assert (near.samples - oracle.samples).square().mean().sqrt() <= 0.05
    # every sample is an image with noise around it, less than the data's: the last step adds none
    nearest = torch.cdist(oracle.samples, digits()).min(1).values / 8
    assert ((nearest > 0.5 * std) & (nearest < 1.1 * std)).all()
