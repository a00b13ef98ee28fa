"""Score errors of a model with a known mistake, and denoising errors against the closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ctd_engine import schedules, solvers
from ctd_engine.exact import MixtureModel
from ctd_engine.likelihood import denoising_errors, score_error_map
from gaussian_problem import SIGMA_DATA, ExactModel, GaussianProblem, wide_schedule

F64 = torch.float64
SCHEDULES: dict[str, Callable[[], schedules.Schedule]] = {
    "vp": wide_schedule,
    "ve": schedules.karras,
    "flow": schedules.flow,
}
LEVELS = [-5.0, 0.0, 2.0, 6.0]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian_score(problem: GaussianProblem) -> Callable[[Tensor, Tensor], Tensor]:
    def score(z: Tensor, logsnr: Tensor) -> Tensor:
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            problem.log_density(point, logsnr).sum().backward()
        assert point.grad is not None
        return point.grad

    return score


@pytest.mark.parametrize(
    ("kind", "prediction"),
    [("vp", "epsilon"), ("vp", "v"), ("vp", "x0"), ("ve", "edm"), ("flow", "flow")],
)
def test_exact_model_has_no_score_error(kind: str, prediction: str) -> None:
    schedule, problem = SCHEDULES[kind](), GaussianProblem(2)
    model = ExactModel(problem, schedule, prediction)
    # far from the data too: there the score is 10 and more
    points = torch.cartesian_prod(*2 * [torch.linspace(-6.0, 6.0, 7, dtype=F64)])
    settings: dict[str, Any] = {"prediction": prediction, "time": "logsnr"}
    settings.update(sigma_data=SIGMA_DATA, max_rows=10)
    errors = score_error_map(model, gaussian_score(problem), points, schedule, LEVELS, **settings)
    assert errors.score.shape == errors.noise.shape == (4, 49)
    assert float(errors.score.max()) < 1e-20
    assert model.rows == 4 * [10, 10, 10, 10, 9]


def test_a_known_mistake_is_measured_where_it_is() -> None:
    schedule, problem = wide_schedule(), GaussianProblem(3)
    exact = ExactModel(problem, schedule, "epsilon")
    points = torch.randn(5, 3, generator=seeded(), dtype=F64)

    def model(x: Tensor, t: Tensor, wrong: Tensor) -> Tensor:
        return exact(x, t) + wrong[:, None] * torch.exp(0.1 * t)[:, None]

    wrong = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4], dtype=F64)
    errors = score_error_map(
        model,
        gaussian_score(problem),
        points,
        schedule,
        LEVELS,
        time="logsnr",
        max_rows=2,
        wrong=wrong,
    )
    levels = torch.tensor(LEVELS, dtype=F64)[:, None]
    expected = 3.0 * (wrong * torch.exp(0.1 * levels)) ** 2
    torch.testing.assert_close(errors.noise, expected)
    torch.testing.assert_close(errors.score, expected * (1.0 + levels.exp()))
    assert errors.points is points
    assert errors.logsnrs.tolist() == LEVELS


def test_score_of_a_mixture_is_the_gradient_of_its_log_density() -> None:
    means = torch.tensor([[-1.0, 0.5], [2.0, 0.0], [0.0, -1.0]], dtype=F64)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    table = solvers.ddpm(schedules.linear_beta(), num_steps=10)
    mixture = MixtureModel(table, means, 0.3, weights)
    z = (2.0 * torch.randn(40, 2, generator=seeded(1), dtype=F64)).requires_grad_()
    logsnr = torch.linspace(-8.0, 8.0, 40, dtype=F64)
    signal = torch.sigmoid(logsnr)[:, None]
    variance = 0.09 * signal + 1.0 - signal
    square = (z[:, None] - signal.sqrt()[..., None] * means).square().sum(-1)
    density = (weights.log() - 0.5 * square / variance - variance.log()).logsumexp(1)
    density.sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(mixture.score(z.detach(), logsnr), z.grad)


@pytest.mark.parametrize(
    ("kind", "prediction"), [("vp", "epsilon"), ("vp", "x0"), ("ve", "edm"), ("flow", "flow")]
)
def test_denoising_errors_are_the_closed_form(kind: str, prediction: str) -> None:
    schedule, problem = SCHEDULES[kind](), GaussianProblem(3)
    levels = torch.linspace(-6.0, 7.0, 14, dtype=F64)
    estimate = denoising_errors(
        ExactModel(problem, schedule, prediction),
        problem.sample(4000),
        schedule,
        levels,
        prediction=prediction,
        time="logsnr",
        num_draws=2,
        max_rows=3000,
        sigma_data=SIGMA_DATA,
        generator=seeded(3),
    )
    # a squared error of noise of unit variance: snr v / (snr v + 1) in a direction of variance v
    snr = levels.exp()[:, None] * problem.variances
    exact = (snr / (snr + 1.0)).sum(1)
    assert float(((estimate.value - exact) / estimate.standard_error).abs().max()) < 4.0
    assert float((estimate.standard_error / exact).max()) < 0.02


def test_standard_errors_of_denoising_errors_are_honest() -> None:
    schedule, problem = wide_schedule(), GaussianProblem(2)
    model = ExactModel(problem, schedule, "epsilon")
    runs = [
        # many draws per point: they must not count as independent
        denoising_errors(
            model,
            problem.sample(30),
            schedule,
            [4.0],
            time="logsnr",
            num_draws=5,
            generator=seeded(i),
        )
        for i in range(300)
    ]
    values, claimed = (torch.cat(part) for part in zip(*runs, strict=True))
    assert float(claimed.square().mean().sqrt() / values.std()) == pytest.approx(1.0, abs=0.15)


def test_conditioning_follows_its_point() -> None:
    seen: list[Tensor] = []

    def model(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        seen.append(label)
        return x

    x = torch.zeros(5, 2)
    denoising_errors(
        model, x, wide_schedule(), [0.0], max_rows=3, label=torch.arange(5), generator=seeded()
    )
    assert [label.tolist() for label in seen] == [[0, 1, 2], [3, 4]]


X = torch.zeros(2, 2)


def zero(z: Tensor, t: Tensor) -> Tensor:
    return torch.zeros_like(z)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: denoising_errors(zero, X[:1], wide_schedule(), [0.0]), "at least 2 points"),
        (
            lambda: denoising_errors(zero, X, wide_schedule(), [0.0], num_draws=0),
            "num_draws must be at least 1, got 0",
        ),
        (
            lambda: denoising_errors(zero, X, wide_schedule(), [0.0], max_rows=0),
            "max_rows must be at least 1, got 0",
        ),
        (lambda: denoising_errors(zero, X, wide_schedule(), []), r"at least one .*shape \(0,\)"),
        (
            lambda: denoising_errors(zero, X, wide_schedule(), [0.0, math.nan]),
            "logsnrs must lie in the schedule's range, -22 to 22, got nan",
        ),
        (
            lambda: score_error_map(zero, zero, X, schedules.linear_beta(), [-11.0]),
            r"logsnrs must lie in the schedule's range, -10.1\d+ to 9.21\d+, got -11 to -11",
        ),
        (
            lambda: score_error_map(zero, lambda z, t: z[:, :1], X, wide_schedule(), [0.0]),
            r"exact_score must return the shape of its points, \(2, 2\), got \(2, 1\)",
        ),
    ],
)
def test_rejects(call: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
