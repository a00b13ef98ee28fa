"""The contrastive term: the exact log ratio, its variance, and what the temperature does."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import pytest
import torch
from torch import Tensor

from ctd_engine import schedules
from ctd_engine._contrast import Draws, Pairs, Query, noise_share, noised_logsnr
from ctd_engine.logsnr_distributions import TruncatedLogistic, Uniform
from ctd_engine.losses import ContrastiveDiffusionLoss
from gaussian_problem import (
    ExactModel,
    GaussianProblem,
    contrast_points,
    wide_schedule,
)
from loss_problem import ALPHA, SCHEDULES, contrast, seeded


def test_beta_and_b_keep_their_digits() -> None:
    getcontext().prec = 60

    def sigmoid(x: float) -> Decimal:
        return 1 / (1 + (-Decimal(x)).exp())

    for zeta in (-30.0, -2.0, 0.0, 3.0, 15.0, 40.0):
        for alpha in (-30.0, -3.0, 0.5, 9.0, 20.0, 45.0):
            product = sigmoid(zeta) * sigmoid(alpha)
            expected_beta = float((product / (1 - product)).ln())
            expected_b = float(((1 - sigmoid(alpha)) / (1 - product)).sqrt())
            values = (torch.tensor(v, dtype=torch.float64) for v in (zeta, alpha))
            beta = noised_logsnr(*values)
            assert float(beta) == pytest.approx(expected_beta, rel=1e-14, abs=1e-14)
            b = noise_share(torch.tensor(alpha, dtype=torch.float64), beta)
            assert float(b) == pytest.approx(expected_b, rel=1e-13)
    infinite = torch.tensor(math.inf, dtype=torch.float64)
    assert float(noised_logsnr(infinite, torch.tensor(1.5, dtype=torch.float64))) == 1.5


@pytest.mark.parametrize("common_random_numbers", [True, False])
def test_loss_is_the_closed_form_cross_entropy(
    common_random_numbers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule, problem = wide_schedule(), GaussianProblem(2)
    loss = ContrastiveDiffusionLoss(
        schedule,
        time="logsnr",
        contrastive_weight=0.5,
        temperature=1.0,
        num_points=12,
        num_draws=100_000,
        zeta=Uniform(-1.0, 5.0),
        alpha=ALPHA if common_random_numbers else TruncatedLogistic(0.5, 1.5, clip=4.0),
        common_random_numbers=common_random_numbers,
    )
    points: list[tuple[Tensor, Tensor, Tensor]] = []
    draw = loss._draw_points

    def recorded(x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        points.append(draw(x, generator))
        return points[-1]

    monkeypatch.setattr(loss, "_draw_points", recorded)
    x = problem.sample(12)
    total = loss(ExactModel(problem, schedule, "epsilon"), x, generator=seeded(5))
    z, zeta, y = points[0]
    assert {-1.0, 1.0} == set(y.tolist())
    assert torch.equal(z[y > 0], x[y > 0])
    delta = problem.log_ratio(z, zeta)
    expected = torch.nn.functional.softplus(y * delta).mean()
    slack = 0.01 if common_random_numbers else 0.25
    assert float(loss.last["cross_entropy"]) == pytest.approx(float(expected), abs=slack)
    assert float(loss.last["delta_mean"]) == pytest.approx(float(delta.mean()), abs=slack)
    if common_random_numbers:
        accuracy = (y * delta < 0).double().mean()
        assert float(loss.last["accuracy"]) == pytest.approx(float(accuracy))
    assert float(loss.last["contrastive"]) == float(loss.last["cross_entropy"]) / 2
    parts = loss.last["denoising"] + 0.5 * loss.last["contrastive"]
    assert float(total) == pytest.approx(float(parts))


def test_a_data_point_is_told_from_a_noised_one() -> None:
    # the sign of the label: the exact model must do better than the log 2 of no skill
    schedule, problem = wide_schedule(), GaussianProblem(4)
    problem.variances = torch.full_like(problem.variances, 0.01)
    loss = ContrastiveDiffusionLoss(
        schedule,
        time="logsnr",
        num_points=100,
        num_draws=200,
        zeta=Uniform(-1.0, 1.0),
        alpha=TruncatedLogistic(4.6, 2.0, clip=8.0),
    )
    loss(ExactModel(problem, schedule, "epsilon"), problem.sample(100), generator=seeded())
    assert float(loss.last["cross_entropy"]) < 0.1
    assert float(loss.last["accuracy"]) > 0.97


@pytest.mark.parametrize(
    ("kind", "prediction"),
    [("vp", "x0"), ("vp", "v"), ("vp", "flow"), ("vp", "edm"), ("ve", "edm"), ("flow", "flow")],
)
def test_every_parametrisation_gives_the_same_delta(kind: str, prediction: str) -> None:
    problem = GaussianProblem(3)
    z, y = problem.sample(6), torch.ones(6)
    zeta = torch.linspace(-1.0, 8.0, 6, dtype=torch.float64)
    alpha = ALPHA.truncated(-8.0, 8.0)

    def delta(schedule: schedules.Schedule, prediction: str) -> Tensor:
        model = ExactModel(problem, schedule, prediction)
        estimate = contrast(schedule, prediction, alpha=alpha)
        return contrast_points(estimate, model, z, zeta, y, 50, seeded(7))[1]

    expected = delta(wide_schedule(), "epsilon")
    torch.testing.assert_close(delta(SCHEDULES[kind](), prediction), expected, rtol=1e-9, atol=1e-9)


def test_common_random_numbers_lower_the_variance_100_times() -> None:
    schedule, problem = wide_schedule(), GaussianProblem(4)
    model = ExactModel(problem, schedule, "epsilon")
    z = problem.sample(1).expand(50_000, 4)
    zeta = torch.full((len(z),), 3.0, dtype=torch.float64)
    # cut at 4 scales as in the paper: a wider cut makes the independent form look worse still
    estimate = contrast(schedule, alpha=TruncatedLogistic(0.5, 1.5, clip=4.0))
    variances = []
    for common in (True, False):
        y, rng = torch.ones(len(z)), seeded()
        _, delta = contrast_points(
            estimate, model, z, zeta, y, 1, rng, common_random_numbers=common
        )
        error = float(delta.std()) / math.sqrt(len(z))
        assert abs(float(delta.mean() - problem.log_ratio(z[:1], 3.0))) < 0.01 + 4 * error
        variances.append(float(delta.var()))
    print(f"variance ratio {variances[1] / variances[0]:.0f}")
    assert variances[1] >= 100 * variances[0]


@pytest.mark.parametrize("common_random_numbers", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 5.0, 40.0])
def test_temperature_softens_the_slope_and_not_the_bounds(
    temperature: float, common_random_numbers: bool
) -> None:
    schedule, problem = wide_schedule(), GaussianProblem(3)
    z, zeta = problem.sample(64), torch.linspace(-4.0, 8.0, 64, dtype=torch.float64)
    y = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(32)
    pairs = contrast(schedule).pairs(
        z, zeta, 2, seeded(), common_random_numbers=common_random_numbers
    )
    # far from the exact model, so that the losses span their whole range
    out = 3.0 * ExactModel(problem, schedule, "epsilon")(pairs.query.input, pairs.query.time)
    out.requires_grad_()
    loss, delta = contrast(schedule).reduce(pairs, out, y, temperature)
    _, plain = contrast(schedule).reduce(pairs, out, y)
    torch.testing.assert_close(delta, plain)
    scaled = y * delta / temperature
    torch.testing.assert_close(loss, temperature * torch.nn.functional.softplus(scaled))
    assert bool((loss >= (y * delta).clamp_min(0.0)).all())
    assert float(scaled.detach().min()) < -1.0 < 1.0 < float(scaled.detach().max())
    # what reaches the model through delta: sigmoid(y delta / T), between 0 and 1
    (of_loss,) = torch.autograd.grad(loss.sum(), out, retain_graph=True)
    slope = torch.sigmoid(scaled.detach())
    (of_delta,) = torch.autograd.grad((slope * y * plain).sum(), out)
    torch.testing.assert_close(of_loss, of_delta)


def test_temperature_lowers_the_bias_of_few_draws() -> None:
    # the slope of the loss in the size of an exact model's answer, from one draw and from 100
    schedule, problem, num_points, many = wide_schedule(), GaussianProblem(2), 2000, 100
    zeta = torch.linspace(-1.0, 5.0, num_points, dtype=torch.float64)
    y = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(num_points // 2)
    signal = torch.where(y > 0, 1.0, torch.sigmoid(zeta)).sqrt()[:, None]
    noise = torch.randn(num_points, 2, generator=seeded(2), dtype=torch.float64)
    z = signal * problem.sample(num_points) + (1.0 - signal**2).sqrt() * noise
    estimate = contrast(schedule)
    pairs = estimate.pairs(z, zeta, many, seeded(3), alpha_given_zeta=True)
    exact = ExactModel(problem, schedule, "epsilon")(pairs.query.input, pairs.query.time)
    # the same draws as points of their own: the difference of the two is bias, and little noise
    parts = (pairs.first.logsnr, pairs.first.weight, pairs.first.eps, pairs.first.z)
    single = Draws(*(part.flatten(0, 1).unsqueeze(1) for part in parts))
    apart = Pairs(single, single, pairs.b.reshape(-1, 1), pairs.query)

    def slopes(temperature: float) -> tuple[float, float, float]:
        size = torch.full((num_points, 1), 0.8, dtype=torch.float64, requires_grad=True)
        out = size.repeat_interleave(many, 0).repeat(2, 1) * exact
        few, _ = estimate.reduce(apart, out, y.repeat_interleave(many), temperature)
        enough, _ = estimate.reduce(pairs, out, y, temperature)
        gap = few.view(num_points, many).mean(1) - enough
        (right,) = torch.autograd.grad(enough.sum(), size, retain_graph=True)
        (bias,) = torch.autograd.grad(gap.sum(), size)
        error = float(bias.std()) / math.sqrt(num_points)
        return float(right.mean()), float(bias.mean()), error

    right_1, bias_1, error_1 = slopes(1.0)
    right_5, bias_5, error_5 = slopes(5.0)
    print(f"slope {right_1:.3f}, bias {bias_1:.3f} +- {error_1:.3f} at temperature 1")
    print(f"slope {right_5:.3f}, bias {bias_5:.3f} +- {error_5:.3f} at temperature 5")
    assert 4 * error_5 < bias_5 < 0.7 * bias_1 - 2 * (error_1 + error_5)
    # the model is too timid: a draw alone pushes it the wrong way at 1, and the right way at 5
    assert right_1 + bias_1 - 4 * error_1 > 0 > right_1
    assert right_5 + bias_5 + 4 * error_5 < 0


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_the_term_is_least_at_temperature_times_the_log_ratio(temperature: float) -> None:
    """Labels drawn with log odds -r; a constant answer delta, judged by the term itself."""
    ratio, num_points = 1.3, 20_000
    share = 1.0 / (1.0 + math.exp(ratio))
    y = torch.where(torch.arange(num_points) < round(share * num_points), 1.0, -1.0).double()
    # one draw of weight 1 whose two errors differ by -2 delta, in one dimension
    delta = torch.linspace(0.0, 10.0, 101, dtype=torch.float64)
    eps = torch.zeros(num_points, 1, 1, dtype=torch.float64)
    ones = torch.ones(num_points, 1, dtype=torch.float64)
    draws = Draws(ones, ones, eps, eps)
    row = torch.zeros(2 * num_points, dtype=torch.float64)
    query = Query(row[:, None], row, row[:, None], row, torch.ones_like(row))
    pairs = Pairs(draws, draws, ones, query)
    estimate, losses = contrast(wide_schedule()), []
    for value in delta:
        out = torch.zeros(2, num_points, 1, dtype=torch.float64)
        out[0] = (2.0 * value).sqrt()
        loss, seen = estimate.reduce(pairs, out.view(-1, 1), y, temperature)
        torch.testing.assert_close(seen[0], value)
        losses.append(float(loss.mean()))
    least = float(delta[int(torch.tensor(losses).argmin())])
    assert least == pytest.approx(temperature * ratio, abs=0.1)
