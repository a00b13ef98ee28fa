"""Calibration of the noise classifier: counts by hand, exact models, and one that errs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ctd_engine.likelihood import Calibration, NoiseClassifier, calibration_curve
from ctd_engine.logsnr_distributions import TruncatedLogistic
from gaussian_problem import ExactModel, GaussianProblem, wide_schedule

F64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_curve_by_hand() -> None:
    posterior = torch.tensor([[0.1, 0.15, 0.75], [0.0, 0.0, 1.0], [0.4, 0.6, 0.0]], dtype=F64)
    curve = calibration_curve(posterior, torch.tensor([1, 2, 0]), num_bins=4)
    assert curve.counts.tolist() == [5, 1, 1, 2]
    torch.testing.assert_close(curve.predicted, torch.tensor([0.05, 0.4, 0.6, 0.875], dtype=F64))
    torch.testing.assert_close(curve.observed, torch.tensor([0.2, 1.0, 0.0, 0.5], dtype=F64))
    # the first point is in bin 0 with two classes: true there with probability 0.25, not more
    variances = torch.tensor([0.25 * 0.75, 0.4 * 0.6, 0.6 * 0.4, 0.75 * 0.25], dtype=F64)
    expected = variances.sqrt() / curve.counts
    torch.testing.assert_close(curve.standard_error, expected)


def test_empty_bins_are_nan() -> None:
    curve = calibration_curve(torch.tensor([[0.5, 0.5]]), torch.tensor([0]), num_bins=3)
    assert curve.counts.tolist() == [0, 2, 0]
    for part in curve[:3]:
        assert part.isnan().tolist() == [True, False, True]


def test_standard_error_is_the_spread_of_calibrated_classifiers() -> None:
    generator = seeded()
    posterior = torch.randn(200, 3, generator=generator, dtype=F64).softmax(1)
    curves = [
        calibration_curve(posterior, torch.multinomial(posterior, 1, generator=generator)[:, 0], 4)
        for _ in range(400)
    ]
    spread = torch.stack([curve.observed for curve in curves]).std(0)
    torch.testing.assert_close(curves[0].standard_error, spread, rtol=0.15, atol=0.0)


def deviations(curve: Calibration) -> Tensor:
    filled = curve.counts >= 20
    return ((curve.observed - curve.predicted) / curve.standard_error)[filled]


def gaussian_curve(wrong: float, **options: Any) -> Calibration:
    problem, schedule = GaussianProblem(1), wide_schedule()
    problem.variances = torch.full((1,), 0.05, dtype=F64)
    exact = ExactModel(problem, schedule, "epsilon")

    def model(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        # a shifted mean
        return exact(x + wrong * torch.sigmoid(t).sqrt()[:, None], t)

    judge = NoiseClassifier(
        model,
        schedule,
        time="logsnr",
        alpha=TruncatedLogistic(3.0, 1.5, clip=8.0),
        num_draws=1000,
        max_rows=100_000,
    )
    return judge.calibration(problem.sample(600), [0.0, 3.0], generator=seeded(1), **options)


def test_exact_model_is_calibrated_and_another_is_not() -> None:
    exact = gaussian_curve(0.0)
    assert int(exact.counts.sum()) == 600 * 3
    assert len(deviations(exact)) >= 7
    assert float(deviations(exact).abs().max()) < 4.0
    assert float(deviations(gaussian_curve(0.5)).abs().max()) > 8.0


def test_points_keep_their_conditioning_and_their_level() -> None:
    seen: list[Tensor] = []

    def model(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        seen.append(label)
        return x

    judge = NoiseClassifier(model, wide_schedule(), num_draws=2)
    state = torch.random.get_rng_state()
    curves = [
        judge.calibration(
            torch.zeros(4, 2), [1.0], num_bins=5, generator=seeded(), label=torch.arange(4)
        )
        for _ in range(2)
    ]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(label.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] for label in seen)
    for first, second in zip(*curves, strict=True):
        torch.testing.assert_close(first, second, rtol=0.0, atol=0.0, equal_nan=True)
    assert len(curves[0].counts) == 5


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: calibration_curve(torch.ones(3, 2) / 2, torch.zeros(2)),
            r"posterior must be \[K, classes\] and truth \[K\], got \(3, 2\) and \(2,\)",
        ),
        (
            lambda: calibration_curve(torch.ones(2, 2) / 2, torch.zeros(2), num_bins=0),
            "num_bins must be at least 1, got 0",
        ),
        (
            lambda: NoiseClassifier(lambda x, t: x * math.nan, wide_schedule()).calibration(
                torch.zeros(2, 2), [1.0]
            ),
            r"posterior must hold probabilities in \[0, 1\], got others or NaN; they are NaN where",
        ),
        (
            lambda: calibration_curve(torch.tensor([[1.5, -0.5]]), torch.zeros(1)),
            r"posterior must hold probabilities in \[0, 1\]",
        ),
        (
            lambda: calibration_curve(torch.ones(2, 2) / 2, torch.tensor([0, 2])),
            r"truth must be in 0 .. 1, the classes of posterior, got 0 to 2",
        ),
        (
            lambda: NoiseClassifier(lambda x, t: x, wide_schedule()).calibration(
                torch.zeros(2, 2), 1.0
            ),
            r"zetas must be a list of log-SNRs, got shape \(\)",
        ),
        (
            lambda: NoiseClassifier(lambda x, t: x, wide_schedule()).calibration(
                torch.zeros(2, 2), [math.nan]
            ),
            "none of them NaN",
        ),
    ],
)
def test_rejects(call: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
