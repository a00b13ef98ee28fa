"""The statistics of samples: against naive sums, scipy, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ctd_engine.experiments.metrics import (
    BANDWIDTH,
    TwoSample,
    energy_distance,
    mmd,
    nearest_class,
)


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def naive(x, y, kernel):
    """2 E k(x, y) - E k(x, x') - E k(y, y') over different points, in float64."""

    def mean(a, b, skip):
        values = [
            kernel(np.linalg.norm(a[i] - b[j]))
            for i in range(len(a))
            for j in range(len(b))
            if not (skip and i == j)
        ]
        return np.mean(values)

    x, y = x.flatten(1).double().numpy(), y.flatten(1).double().numpy()
    return 2 * mean(x, y, False) - mean(x, x, True) - mean(y, y, True)


@pytest.mark.parametrize("shape", [(1,), (2,), (1, 3, 2)], ids=str)
def test_matches_naive_sums(shape):
    x, y = normal(0, 23, *shape), 0.5 * normal(1, 31, *shape) + 0.3
    for bandwidth in (BANDWIDTH, 0.7):
        density = naive(x, y, lambda d, b=bandwidth: math.exp(-(d**2) / (2 * b)))
        expected = -density / math.sqrt(2 * math.pi * bandwidth)
        assert mmd(x, y, bandwidth) == pytest.approx(expected, abs=1e-6)
    assert energy_distance(x, y) == pytest.approx(naive(x, y, lambda d: d), abs=1e-6)


def test_energy_distance_is_scipys_without_bias():
    x, y = normal(0, 700, 1), 2.0 * normal(1, 1025, 1) + 1.0
    biased = stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    within = [
        float(torch.cdist(v, v).double().sum()) / len(v) * (1 / (len(v) - 1) - 1 / len(v))
        for v in (x, y)
    ]
    assert energy_distance(x, y) == pytest.approx(biased - sum(within), abs=1e-5)


def test_shifted_normals_have_the_closed_forms():
    shift, count = 1.5, 4000
    x, y = normal(0, count, 1), normal(1, count, 1) + shift

    def folded(mean):
        # E|N(mean, 2)|
        return 2 / math.sqrt(math.pi) * math.exp(-(mean**2) / 4) + mean * math.erf(mean / 2)

    expected = 2 * folded(shift) - 2 * folded(0.0)
    assert energy_distance(x, y) == pytest.approx(expected, rel=0.1)
    width = BANDWIDTH + 2.0
    same = math.sqrt(BANDWIDTH / width)
    expected = 2 * same * (1 - math.exp(-(shift**2) / (2 * width)))
    assert mmd(x, y) == pytest.approx(expected / math.sqrt(2 * math.pi * BANDWIDTH), rel=0.1)


def test_equal_distributions_give_zero_on_average():
    reference = TwoSample(normal(0, 600, 2))
    for statistic in (reference.mmd, reference.energy_distance):
        values = np.array([statistic(normal(seed, 200, 2)) for seed in range(1, 41)])
        error = values.std(ddof=1) / math.sqrt(len(values))
        # the reference's own deviation is common to all
        assert abs(values.mean()) < 4 * error + 0.5 * values.std(ddof=1)
        assert values.min() < 0 < values.max()


def test_chunks_and_the_kept_part_change_nothing():
    x, y = normal(0, 1030, 2), normal(1, 513, 2) + 0.2
    reference = TwoSample(y)
    first = reference.mmd(x)
    assert reference.mmd(x) == first
    # symmetric, though each side is cut into other chunks
    assert mmd(y, x) == pytest.approx(first, abs=1e-7)
    assert energy_distance(y, x) == pytest.approx(reference.energy_distance(x), abs=1e-6)
    assert reference.mmd(x, 0.5) == pytest.approx(mmd(x, y, 0.5), abs=1e-9)


def test_nearest_class():
    images = normal(0, 30, 1, 4, 4)
    labels = torch.arange(30) % 10
    samples = images[torch.arange(600) % 30] + 1e-3 * normal(1, 600, 1, 4, 4)
    assert torch.equal(nearest_class(samples, images, labels), labels[torch.arange(600) % 30])


def test_rejects():
    with pytest.raises(ValueError, match=r"one shape, got \(5, 3\) and \(5, 2\)"):
        mmd(normal(0, 5, 3), normal(1, 5, 2))
    with pytest.raises(ValueError, match="at least two points"):
        energy_distance(normal(0, 1, 2), normal(1, 5, 2))
