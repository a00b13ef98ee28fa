"""Log ratios, likelihoods and noise levels against closed forms for Gaussian data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ctd_engine import schedules
from ctd_engine.likelihood import NoiseClassifier, bits_per_dimension, log_likelihood
from ctd_engine.logsnr_distributions import TruncatedLogistic
from gaussian_problem import SIGMA_DATA, ExactModel, GaussianProblem, wide_schedule

ALPHA = TruncatedLogistic(0.5, 2.0, clip=10.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classifier(
    problem: GaussianProblem, num_draws: int, prediction: str = "epsilon", **options: Any
) -> NoiseClassifier:
    schedule = wide_schedule()
    return NoiseClassifier(
        ExactModel(problem, schedule, prediction),
        schedule,
        prediction=prediction,
        time="logsnr",
        alpha=options.pop("alpha", ALPHA),
        num_draws=num_draws,
        sigma_data=SIGMA_DATA,
        **{"max_rows": 200_000, **options},
    )


@pytest.mark.parametrize("num_dimensions", [1, 2, 3, 4])
def test_log_ratio_is_the_closed_form(num_dimensions: int) -> None:
    problem = GaussianProblem(num_dimensions, seed=num_dimensions)
    zetas = [-1.0, 0.0, 3.0, 8.0]
    # on the path of each density, and far from both
    off = problem.mean + 2.5 * torch.ones(1, num_dimensions, dtype=torch.float64)
    z = torch.cat([problem.sample(1), problem.sample(1, zeta=0.0), off])
    estimate = classifier(problem, 100_000).log_ratio(z, zetas, generator=seeded(11))
    exact = torch.stack([problem.log_ratio(z, zeta) for zeta in zetas], 1)
    assert estimate.value.shape == exact.shape == (3, 4)
    deviation = (estimate.value - exact) / estimate.standard_error
    assert float(deviation.abs().max()) < 4.0
    # 12 values: their mean square deviation from 1 would show a wrong standard error
    assert 0.1 < float(deviation.square().mean()) < 3.0
    # digits, on the scale of the values at each zeta
    relative = (estimate.value - exact).abs().amax(0) / exact.abs().amax(0)
    assert float(relative.max()) < 0.02


def test_log_ratio_has_three_digits_at_400k_draws() -> None:
    problem = GaussianProblem(2, seed=5)
    z = problem.mean + torch.tensor([[1.5, -1.0]], dtype=torch.float64)
    estimate = classifier(problem, 400_000).log_ratio(z, [1.0, 3.0], generator=seeded(1))
    exact = torch.stack([problem.log_ratio(z, zeta) for zeta in (1.0, 3.0)], 1)
    torch.testing.assert_close(estimate.value, exact, rtol=5e-3, atol=0.0)


@pytest.mark.parametrize("num_dimensions", [1, 3])
def test_log_likelihood_is_within_its_standard_error(num_dimensions: int) -> None:
    problem = GaussianProblem(num_dimensions, seed=3)
    x = torch.cat([problem.sample(4), problem.mean + torch.full((1, num_dimensions), 2.0)])
    exact = problem.log_density(x)
    judge = classifier(problem, 20_000)
    for base in ({}, {"mean": problem.mean, "variance": 0.8}):
        estimate = judge.log_likelihood(x, **base, generator=seeded(2))
        deviation = (estimate.value - exact) / estimate.standard_error
        assert float(deviation.abs().max()) < 4.0
        assert float(estimate.standard_error.max()) < 0.2
    expected = bits_per_dimension(estimate.value, num_dimensions)
    torch.testing.assert_close(expected, -estimate.value / num_dimensions / math.log(2))


def test_log_likelihood_without_noise_when_the_base_is_the_data() -> None:
    problem = GaussianProblem(2)
    problem.basis = torch.eye(2, dtype=torch.float64)
    x = problem.sample(3)
    estimate = classifier(problem, 50).log_likelihood(
        x, mean=problem.mean, variance=problem.variances, generator=seeded()
    )
    torch.testing.assert_close(estimate.value, problem.log_density(x), rtol=1e-9, atol=1e-9)
    assert float(estimate.standard_error.max()) < 1e-9


def test_function_and_method_agree_and_chunks_cover_every_point() -> None:
    problem, schedule = GaussianProblem(2), wide_schedule()
    x = problem.sample(5)
    model = ExactModel(problem, schedule, "v")
    estimate = log_likelihood(
        model,
        x,
        schedule,
        prediction="v",
        time="logsnr",
        alpha=ALPHA,
        num_draws=7,
        max_rows=3,
        generator=seeded(),
    )
    assert max(model.rows) <= 3
    assert sum(model.rows) == 5 * 7
    method = classifier(problem, 7, "v", max_rows=3).log_likelihood(x, generator=seeded())
    assert torch.equal(estimate.value, method.value)
    # a large error here would mean that points and chunks were mixed up
    deviation = (estimate.value - problem.log_density(x)) / estimate.standard_error
    assert float(deviation.abs().max()) < 10.0


def test_samples_keep_their_shape_and_conditioning() -> None:
    problem, schedule = GaussianProblem(4), wide_schedule()
    exact = ExactModel(problem, schedule, "epsilon")
    seen: list[Tensor] = []

    def model(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        assert x.shape[1:] == (1, 2, 2)
        seen.append(label)
        return exact(x, t) + 0.0 * label.view(-1, 1, 1, 1)

    judge = NoiseClassifier(
        model, schedule, time="logsnr", alpha=ALPHA, num_draws=2000, max_rows=4000
    )
    x = problem.sample(3)
    estimate = judge.log_likelihood(
        x.view(3, 1, 2, 2), generator=seeded(), label=torch.tensor([1.0, 2.0, 3.0])
    )
    # the rows of a call are point after point
    assert all(bool((label.diff() >= 0).all()) for label in seen)
    assert torch.cat(seen).long().bincount().tolist() == [0, 2000, 2000, 2000]
    deviation = (estimate.value - problem.log_density(x)) / estimate.standard_error
    assert float(deviation.abs().max()) < 4.0


def test_predicts_the_noise_level() -> None:
    problem = GaussianProblem(4)
    problem.variances = torch.full_like(problem.variances, 1e-3)
    judge = classifier(problem, 2000, alpha=TruncatedLogistic(6.0, 2.0, clip=8.0))
    zetas = [-2.0, 1.0, 4.0]
    for zeta in (*zetas, math.inf):
        z = problem.sample(6, zeta=None if zeta == math.inf else zeta)
        answer = judge.predict(z, zetas, generator=seeded(4))
        assert answer.posterior.shape == (6, 4)
        torch.testing.assert_close(answer.posterior.sum(1), torch.ones(6, dtype=torch.float64))
        assert (answer.logsnr == zeta).double().mean() >= 4 / 6


def test_no_noise_is_no_ratio() -> None:
    problem = GaussianProblem(2)
    estimate = classifier(problem, 10).log_ratio(problem.sample(3), math.inf, generator=seeded())
    assert estimate.value.tolist() == estimate.standard_error.tolist() == [0.0, 0.0, 0.0]


def test_reproducible_without_gradients_or_global_state() -> None:
    problem = GaussianProblem(2)
    x = problem.sample(2).requires_grad_()
    state = torch.random.get_rng_state()
    first = classifier(problem, 10).log_ratio(x, 1.0, generator=seeded())
    assert torch.equal(torch.random.get_rng_state(), state)
    again = classifier(problem, 10).log_ratio(x, 1.0, generator=seeded())
    assert torch.equal(first.value, again.value)
    assert not first.value.requires_grad


def test_bits_per_dimension_of_8_bit_images() -> None:
    # uniform over [-1, 1]: 8 bits per element
    value = bits_per_dimension(torch.tensor([-10 * math.log(2.0)]), 10, bin_width=2 / 256)
    assert float(value) == pytest.approx(8.0)


X = torch.zeros(2, 2, dtype=torch.float64)


def small(**options: Any) -> NoiseClassifier:
    return NoiseClassifier(lambda x, t: x, schedules.linear_beta(), **{"num_draws": 2, **options})


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: small(num_draws=1), ValueError, "num_draws must be at least 2 for a standard err"),
        (lambda: small(max_rows=0), ValueError, "max_rows must be at least 1, got 0"),
        (lambda: small(alpha=3.0), TypeError, "alpha must be a LogSNRDistribution"),
        (lambda: small(prediction="noise"), ValueError, "prediction must be one of"),
        (lambda: small().log_ratio([1.0], 1.0), TypeError, "z must be a tensor, got list"),
        (lambda: small().log_ratio(X, math.nan), ValueError, "none of them NaN"),
        (lambda: small().log_ratio(X, [[1.0]]), ValueError, r"zeta must be .*got shape \(1, 1\)"),
        (lambda: small().predict(X, 1.0), ValueError, "zetas must be a list of log-SNRs"),
        (lambda: small().log_likelihood(X, variance=0.0), ValueError, "variance must be positive"),
        (
            lambda: small().log_likelihood(X, mean=torch.zeros(3)),
            ValueError,
            r"mean must be a number or broadcast against a sample of shape \(2,\), got \(3,\)",
        ),
        (
            lambda: small().log_ratio(X, 1.0, label=torch.zeros(3)),
            ValueError,
            "label must have one entry per sample",
        ),
        (lambda: bits_per_dimension(torch.zeros(1), 0), ValueError, "num_dimensions must be at l"),
        (
            lambda: bits_per_dimension(torch.zeros(1), 2, bin_width=0.0),
            ValueError,
            "bin_width must be positive",
        ),
    ],
)
def test_rejects(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
