"""How far windows advance, against a loop that reads like the definition."""

from __future__ import annotations

import math

import pytest
import torch

from ctd_engine.ops.trajectory_error import trajectory_error


def by_hand(errors, threshold, start, length):
    accepted, finite = [], []
    for row, first, count in zip(errors.tolist(), start.tolist(), length.tolist(), strict=True):
        num_finite = 0
        while num_finite < count and math.isfinite(row[num_finite]):
            num_finite += 1
        advance = 0
        while advance < count and row[advance] <= float(threshold[first + 1 + advance]):
            advance += 1
        accepted.append(max(1, min(advance + 1, num_finite)))
        finite.append(num_finite)
    return accepted, finite


@pytest.mark.parametrize("seed", range(20))
def test_random_windows(seed):
    """What lies beyond a window's length, small errors included, must not count."""
    generator = torch.Generator().manual_seed(seed)
    num_nodes, longest = 30, 9
    errors = torch.rand(8, longest, generator=generator, dtype=torch.float64)
    for bad in (math.nan, math.inf):
        errors[torch.rand(errors.shape, generator=generator) < 0.05] = bad
    threshold = 1.5 * torch.rand(num_nodes + 1, generator=generator, dtype=torch.float64)
    length = torch.randint(1, longest + 1, (8,), generator=generator)
    start = torch.randint(0, num_nodes - longest + 1, (8,), generator=generator)
    accepted, finite = trajectory_error(errors[:, :, None], 1, threshold, start, length)
    assert (accepted.tolist(), finite.tolist()) == by_hand(errors, threshold, start, length)


def test_padding_of_zeros_is_not_converged():
    threshold = torch.ones(10)
    accepted, finite = trajectory_error(
        torch.zeros(2, 5, 1), 1, threshold, torch.tensor([0, 4]), torch.tensor([2, 5])
    )
    assert finite.tolist() == [2, 5]
    assert accepted.tolist() == [2, 5]


def test_threshold_zero_accepts_only_what_no_longer_changes():
    errors = torch.tensor([[0.0, 0.0, 1e-300, 0.0]], dtype=torch.float64)
    zero = torch.zeros(6, dtype=torch.float64)
    accepted, _ = trajectory_error(
        errors[:, :, None], 1, zero, torch.tensor([0]), torch.tensor([4])
    )
    assert accepted.tolist() == [3]
