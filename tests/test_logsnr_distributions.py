"""Log-SNR distributions: support, density, draws and the weights made from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from ctd_engine.logsnr_distributions import (
    LogSNRDistribution,
    TruncatedLogistic,
    TruncatedNormal,
    Uniform,
    alpha_from_data,
    logistic_from_data,
    zeta_from_data,
)

DISTRIBUTIONS = [
    TruncatedLogistic(10.5, 1.5, clip=3.0),
    TruncatedLogistic(4.0, 4.0, clip=4.0).truncated(-10.0, 9.0),
    TruncatedLogistic(0.0, 2.0, clip=math.inf).truncated(-9.0, 9.0),
    TruncatedNormal(2.4, 2.4).truncated(-8.0, 12.0),
    Uniform(6.0, 15.0),
    Uniform(6.0, 15.0).truncated(-3.0, 9.0),
]


def grid(distribution: LogSNRDistribution, num_points: int = 200_001) -> torch.Tensor:
    return torch.linspace(*distribution.support, num_points, dtype=torch.float64)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
def test_density_integrates_to_one(distribution: LogSNRDistribution) -> None:
    points = grid(distribution)
    area = torch.trapezoid(distribution.density(points), points)
    assert float(area) == pytest.approx(1.0, abs=1e-8)
    low, high = distribution.support
    outside = torch.tensor([low - 1e-6, high + 1e-6], dtype=torch.float64)
    assert distribution.density(outside).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
def test_draws_follow_the_density(distribution: LogSNRDistribution) -> None:
    draws = distribution.sample((20_000,), generator=torch.Generator().manual_seed(3))
    points = grid(distribution, 20_001)
    cdf = torch.cumulative_trapezoid(distribution.density(points), points)
    cdf = torch.cat([cdf.new_zeros(1), cdf]).numpy()

    def cumulative(values: Any) -> Any:
        return np.interp(values, points.numpy(), cdf)

    assert stats.kstest(draws.numpy(), cumulative).pvalue > 1e-3
    assert draws.dtype == torch.float64
    assert distribution.support[0] <= float(draws.min())
    assert float(draws.max()) <= distribution.support[1]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS[:2], ids=str)
def test_importance_weight_is_the_closed_form(distribution: LogSNRDistribution) -> None:
    loc, scale = distribution.loc, distribution.scale
    low, high = distribution.support
    draws = distribution.sample((400_000,), generator=torch.Generator().manual_seed(4))
    weight = 1.0 / distribution.density(draws)
    # 1 / density of the untruncated logistic is scale (2 + 2 cosh), times the mass that is kept
    mass = 1 / (1 + math.exp(-(high - loc) / scale)) - 1 / (1 + math.exp(-(low - loc) / scale))
    expected = mass * scale * (2.0 + 2.0 * torch.cosh((draws - loc) / scale))
    torch.testing.assert_close(weight, expected, rtol=1e-10, atol=0.0)
    # the weights integrate what they should: 1 and the log-SNR over the support
    for value, integral in ((weight, high - low), (weight * draws, (high**2 - low**2) / 2)):
        error = float(value.std()) / math.sqrt(len(value))
        assert abs(float(value.mean()) - integral) < 4 * error


def test_infinite_support_never_draws_infinity() -> None:
    for distribution in (TruncatedNormal(0.0, 1.0), TruncatedLogistic(0.0, 1.0, clip=math.inf)):
        draws = distribution.sample((100_000,), generator=torch.Generator().manual_seed(0))
        assert bool(draws.isfinite().all())


def test_reproducible_and_independent_of_the_global_generator() -> None:
    state = torch.random.get_rng_state()
    first = DISTRIBUTIONS[0].sample((5, 3), generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(7)
    second = DISTRIBUTIONS[0].sample((5, 3), generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, second)
    assert first.shape == (5, 3)


def test_alpha_from_data() -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(20_000, 3, 2, generator=generator) * 0.5
    distribution = alpha_from_data(data, clip=4.0)
    assert distribution.loc == pytest.approx(-math.log(0.25), abs=0.03)
    assert distribution.scale == pytest.approx(1.0, abs=0.01)
    # flat directions, as at the border of digit images, are left out
    padded = torch.cat([data.flatten(1), torch.full((len(data), 4), -1.0)], 1)
    assert alpha_from_data(padded).loc == pytest.approx(distribution.loc, abs=1e-9)
    stretched = data * torch.tensor([[1.0], [0.1], [0.01]])
    assert alpha_from_data(stretched).scale == pytest.approx(
        math.sqrt(1 + 3 / math.pi**2 * math.log(100.0) ** 2 * 2 / 3), rel=0.01
    )


def axes_of(variances: list[float], num_samples: int) -> torch.Tensor:
    """Data of exactly these variances along its axes, in an order that is not the axes'."""
    generator = torch.Generator().manual_seed(1)
    size = len(variances)
    shape = (num_samples, size + 1)
    basis, _ = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64))
    # columns without mean, orthogonal to each other
    centred, _ = torch.linalg.qr(basis[:, :size] - basis[:, :size].mean(0))
    scales = torch.tensor(variances, dtype=torch.float64).sqrt() * math.sqrt(num_samples)
    turn, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return (centred * scales) @ turn + 3.0


@pytest.mark.parametrize("num_samples", [12, 300])
@pytest.mark.parametrize("variances", [[1.0], [0.2, 0.2], [4.0, 1.0, 1e-3, 1e-4]])
def test_zeta_from_data_is_where_noise_costs_what_it_says(
    variances: list[float], num_samples: int
) -> None:
    zeta = zeta_from_data(axes_of(variances, num_samples))
    assert isinstance(zeta, Uniform)
    costs = [
        0.5 * sum(math.log1p(math.exp(-level) / v) for v in variances) for level in zeta.support
    ]
    assert costs == pytest.approx([1.5 * len(variances), 0.01], rel=1e-6)


def test_zeta_from_data_moves_with_the_scale_and_grows_with_the_size() -> None:
    unit = zeta_from_data(axes_of([1.0, 0.1], 50)).support
    small = zeta_from_data(0.1 * axes_of([1.0, 0.1], 50)).support
    shift = math.log(100.0)
    assert small == pytest.approx((unit[0] + shift, unit[1] + shift), rel=1e-9)
    # noise on many elements is seen earlier, and what is coarse per element stays
    many = zeta_from_data(axes_of([1.0, 0.1] * 50, 300)).support
    assert many[0] == pytest.approx(unit[0], rel=1e-6)
    assert many[1] == pytest.approx(unit[1] + math.log(50.0), abs=0.02)
    # directions that never change do not count: the copy adds none, and doubles the variances
    twice = axes_of([1.0, 0.1], 50).repeat(1, 2)
    shift = math.log(2.0)
    expected = (unit[0] - shift, unit[1] - shift)
    assert zeta_from_data(twice).support == pytest.approx(expected, rel=1e-6)


def test_the_older_name_of_alpha_from_data() -> None:
    assert logistic_from_data is alpha_from_data


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TruncatedLogistic(math.nan, 1.0), "loc must be finite, got nan"),
        (lambda: TruncatedLogistic(0.0, 0.0), "scale must be positive and finite, got 0.0"),
        (lambda: TruncatedNormal(0.0, math.inf), "scale must be positive and finite, got inf"),
        (lambda: TruncatedLogistic(0.0, 1.0, clip=-1.0), "clip must be positive"),
        (lambda: TruncatedLogistic(0.0, 1.0).truncated(4.0, 9.0), "distribution is empty: loc 0.0"),
        (lambda: TruncatedNormal(0.0, 1.0).truncated(90.0, 99.0), "no mass between 90.0 and 99.0"),
        (lambda: Uniform(3.0, 3.0), "low must be below high"),
        (lambda: Uniform(3.0, math.inf), "low must be below high, both finite"),
        (lambda: Uniform(3.0, 4.0).truncated(5.0, 6.0), "empty: uniform on \\[3.0, 4.0\\]"),
        (lambda: alpha_from_data(torch.zeros(1, 3)), r"num_samples >= 2.*got \(1, 3\)"),
        (lambda: alpha_from_data(torch.ones(5, 3)), "data must vary between samples"),
        (lambda: zeta_from_data(torch.zeros(3)), r"num_samples >= 2.*got \(3,\)"),
        (lambda: zeta_from_data(torch.ones(5, 3)), "data must vary between samples"),
        (lambda: zeta_from_data(torch.eye(3) / 0.0), "data must be finite, got NaN or infinity"),
    ],
)
def test_rejects(make: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
