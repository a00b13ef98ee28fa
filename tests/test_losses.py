"""The losses: known minima, the exact log ratio, random numbers, calls and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, getcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctd_engine import schedules
from ctd_engine._contrast import Contrast, Draws, Pairs, Query, noise_share, noised_logsnr
from ctd_engine.logsnr_distributions import LogSNRDistribution, TruncatedLogistic, Uniform
from ctd_engine.losses import ContrastiveDiffusionLoss, DenoisingLoss
from gaussian_problem import (
    SIGMA_DATA,
    ExactModel,
    GaussianProblem,
    contrast_points,
    wide_schedule,
)

ALPHA = TruncatedLogistic(0.5, 2.0, clip=10.0)
SCHEDULES: dict[str, Callable[[], schedules.Schedule]] = {
    "vp": schedules.linear_beta,
    "ve": schedules.karras,
    "flow": schedules.flow,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mlp(shape: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float32) -> Callable[..., Tensor]:
    torch.manual_seed(0)
    size = math.prod(shape)
    net = nn.Sequential(nn.Linear(size + 1, 16), nn.Tanh(), nn.Linear(16, size)).to(dtype)

    def model(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        out: Tensor = net(torch.cat([x.flatten(1), 1e-3 * t[:, None].to(x.dtype)], 1))
        return out.view(x.shape)

    model.net = net  # type: ignore[attr-defined]
    return model


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "flow", "edm"])
@pytest.mark.parametrize("kind", ["vp", "ve", "flow"])
def test_denoising_loss_of_the_exact_model_is_its_minimum(kind: str, prediction: str) -> None:
    if prediction == "v" and kind != "vp":
        pytest.skip("refused by the schedule")
    schedule, problem = SCHEDULES[kind](), GaussianProblem(3)
    loss = DenoisingLoss(schedule, prediction=prediction, time="logsnr", sigma_data=SIGMA_DATA)
    model = ExactModel(problem, schedule, prediction)
    generator = seeded(1)
    values = torch.stack(
        [loss(model, problem.sample(4096), generator=generator) for _ in range(40)]
    )
    if loss.levels is None:
        level, weight = schedule.logsnrs, torch.full_like(schedule.logsnrs, 1 / 1000)
    else:
        level = torch.linspace(*loss.levels.support, 200_001, dtype=torch.float64)
        weight = loss.levels.density(level) * (level[1] - level[0])
    minimum = float((weight * problem.minimum(prediction, *schedule.alpha_sigma(level))).sum())
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - minimum) < 4 * error
    assert error < 0.02 * minimum


def test_edm_prediction_is_the_weighted_loss_of_the_paper() -> None:
    schedule = schedules.karras()
    seen: dict[str, Tensor] = {}

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.update(x=x, t=t)
        return torch.sin(x)

    x = torch.randn(64, 3, generator=seeded(2), dtype=torch.float64)
    value = DenoisingLoss(schedule, prediction="edm", sigma_data=0.5)(model, x, generator=seeded())
    sigma = torch.exp(4.0 * seen["t"])[:, None]
    noisy = seen["x"] * (sigma**2 + 0.25).sqrt()
    c_skip, c_out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / (sigma**2 + 0.25).sqrt()
    denoised = c_skip * noisy + c_out * torch.sin(seen["x"])
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    torch.testing.assert_close(value, (weight * (denoised - x) ** 2).mean())
    # log-normal sigma with mean -1.2 and standard deviation 1.2
    assert float(sigma.log().mean()) == pytest.approx(-1.2, abs=4 * 1.2 / 8)


def test_discrete_levels_are_uniform_indices_told_as_timesteps() -> None:
    times: list[Tensor] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        times.append(t)
        return x

    loss = DenoisingLoss(schedules.linear_beta())
    loss(model, torch.zeros(50_000, 1), generator=seeded())
    steps = times[0]
    assert steps.dtype == torch.float32
    torch.testing.assert_close(steps, steps.round(), rtol=0.0, atol=1e-3)
    counts = torch.bincount(steps.round().long(), minlength=1000)
    assert len(counts) == 1000
    assert int(counts.min()) > 0
    assert float(((counts - 50.0) ** 2 / 50.0).sum()) < 999 + 5 * math.sqrt(2 * 999)


def test_zero_terminal_snr_trains_with_v_and_refuses_epsilon() -> None:
    cumprod = torch.linspace(0.99, 0.0, 20, dtype=torch.float64)
    schedule = schedules.from_alphas_cumprod(cumprod)
    value = DenoisingLoss(schedule, prediction="v")(
        lambda x, t: 0.0 * t[:, None] + x, torch.randn(500, 2), generator=seeded()
    )
    assert bool(value.isfinite())
    with pytest.raises(ValueError, match="zero terminal SNR"):
        DenoisingLoss(schedule, prediction="epsilon")
    with pytest.raises(ValueError, match='time "logsnr" is infinite'):
        DenoisingLoss(schedule, prediction="v", time="logsnr")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_data_gets_fp32_arithmetic_and_times(dtype: torch.dtype) -> None:
    def model(x: Tensor, t: Tensor) -> Tensor:
        assert (x.dtype, t.dtype) == (dtype, torch.float32)
        return x

    x = torch.randn(8, 1, 4, 4, generator=seeded()).to(dtype)
    for loss in (DenoisingLoss, ContrastiveDiffusionLoss):
        value = loss(schedules.linear_beta())(model, x, generator=seeded())
        assert value.dtype == torch.float32
        assert bool(value.isfinite())


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


def contrast(schedule: schedules.Schedule, prediction: str = "epsilon", **options: Any) -> Contrast:
    settings = {"time": "logsnr", "sigma_data": SIGMA_DATA, "alpha": ALPHA, **options}
    return Contrast(schedule, prediction=prediction, **settings)


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


def rows_of_a_call(batch: int, **options: Any) -> list[int]:
    schedule = schedules.linear_beta()
    model = ExactModel(GaussianProblem(2), schedule, "epsilon")
    loss = ContrastiveDiffusionLoss(schedule, time="logsnr", **options)
    loss(model, torch.randn(batch, 2, dtype=torch.float64), generator=seeded())
    return model.rows


def test_both_terms_share_one_model_call() -> None:
    assert rows_of_a_call(7, num_points=3, num_draws=4) == [7 + 2 * 3 * 4]
    assert rows_of_a_call(7, contrastive_weight=0.0) == [7]


@pytest.mark.parametrize(("batch", "rows"), [(1, 5), (7, 11), (24, 28), (256, 296)])
def test_defaults_add_a_sixth_of_the_rows(batch: int, rows: int) -> None:
    assert rows_of_a_call(batch) == [rows]


def test_more_draws_at_the_same_rows() -> None:
    for num_draws in (1, 4, 8):
        assert rows_of_a_call(96, num_draws=num_draws) == [112]


def test_conditioning_follows_its_point() -> None:
    labels = torch.arange(6)
    seen: list[Tensor] = []

    def model(x: Tensor, t: Tensor, label: Tensor, scale: float, unit: Tensor) -> Tensor:
        assert scale == 2.0
        assert unit.shape == ()
        seen.append(label)
        return x

    loss = ContrastiveDiffusionLoss(schedules.linear_beta(), num_points=3, num_draws=2)
    x = torch.randn(6, 2)
    loss(model, x, generator=seeded(), label=labels, scale=2.0, unit=torch.tensor(1.0))
    # the points are spread evenly over the batch
    assert seen[0].tolist() == [0, 1, 2, 3, 4, 5] + 2 * [0, 0, 2, 2, 4, 4]


def test_last_has_the_spread_of_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = ContrastiveDiffusionLoss(schedules.linear_beta(), num_points=5, contrastive_weight=1.0)
    deltas: list[Tensor] = []
    reduce = loss._contrast.reduce

    def recorded(*arguments: Any) -> tuple[Tensor, Tensor]:
        value, delta = reduce(*arguments)
        deltas.append(delta.detach())
        return value, delta

    monkeypatch.setattr(loss._contrast, "reduce", recorded)
    x = torch.randn(16, 2, generator=seeded(9), dtype=torch.float64)
    loss(mlp(dtype=torch.float64), x, generator=seeded())
    assert set(loss.last) == {
        "denoising",
        "contrastive",
        "cross_entropy",
        "delta_mean",
        "delta_standard_error",
        "accuracy",
    }
    torch.testing.assert_close(loss.last["delta_mean"], deltas[0].mean())
    expected = deltas[0].std() / math.sqrt(5)
    torch.testing.assert_close(loss.last["delta_standard_error"], expected)
    # one point says nothing about the spread, and must neither warn nor fail
    loss.num_points = 1
    loss(mlp(dtype=torch.float64), x, generator=seeded())
    assert bool(loss.last["delta_standard_error"].isnan())


@pytest.mark.parametrize("loss", [DenoisingLoss, ContrastiveDiffusionLoss])
def test_reproducible_and_independent_of_the_global_generator(loss: Any) -> None:
    model, x = mlp(), torch.randn(16, 2, generator=seeded(9))
    estimate = loss(schedules.linear_beta())
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = estimate(model, x, generator=seeded(3))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(estimate(model, x, generator=seeded(3)), first)
    assert not torch.equal(estimate(model, x, generator=seeded(4)), first)
    torch.manual_seed(1)
    without = estimate(model, x)
    torch.manual_seed(1)
    assert torch.equal(estimate(model, x), without)


def test_same_denoising_term_with_and_without_the_contrast() -> None:
    model, x = mlp(), torch.randn(16, 2, generator=seeded(9))
    plain = DenoisingLoss(schedules.cosine())(model, x, generator=seeded())
    loss = ContrastiveDiffusionLoss(schedules.cosine())
    loss(model, x, generator=seeded())
    torch.testing.assert_close(loss.last["denoising"], plain.detach())
    assert all(not part.requires_grad and part.shape == () for part in loss.last.values())


@pytest.mark.parametrize("common_random_numbers", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_gradient_of_the_total(temperature: float, common_random_numbers: bool) -> None:
    schedule = schedules.linear_beta()
    x = torch.randn(4, 3, generator=seeded(), dtype=torch.float64)
    loss = ContrastiveDiffusionLoss(
        schedule,
        contrastive_weight=1.0,
        temperature=temperature,
        num_points=4,
        common_random_numbers=common_random_numbers,
    )

    def total(weight: Tensor) -> Tensor:
        return loss(lambda x, t: torch.tanh(x @ weight), x, generator=seeded(1))

    weight = torch.randn(3, 3, generator=seeded(2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(total, (weight,))


VP = schedules.linear_beta()


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: DenoisingLoss(VP, prediction="eps"), ValueError, "prediction must be one of"),
        (lambda: DenoisingLoss(VP, time="step"), ValueError, "time must be None or one of"),
        (lambda: DenoisingLoss(VP, levels="log"), ValueError, "levels must be None or one of"),
        (lambda: DenoisingLoss(VP, levels=3), TypeError, "levels must be a name, a LogSNRDis"),
        (
            lambda: DenoisingLoss(schedules.karras(), levels="discrete"),
            ValueError,
            'levels "discrete" needs a schedule with discrete timesteps',
        ),
        (lambda: DenoisingLoss(schedules.flow(), prediction="v"), ValueError, "variance-preserv"),
        (
            lambda: ContrastiveDiffusionLoss(VP, contrastive_weight=-1.0),
            ValueError,
            "contrastive_weight must be finite and at least 0, got -1.0",
        ),
        (
            lambda: ContrastiveDiffusionLoss(VP, contrastive_weight=math.nan),
            ValueError,
            "contrastive_weight must be finite",
        ),
        (
            lambda: ContrastiveDiffusionLoss(VP, temperature=0.0),
            ValueError,
            "temperature must be positive and finite, got 0.0",
        ),
        (lambda: ContrastiveDiffusionLoss(VP, num_points=0), ValueError, "num_points must be "),
        (lambda: ContrastiveDiffusionLoss(VP, num_points=1.5), TypeError, "num_points must be "),
        (lambda: ContrastiveDiffusionLoss(VP, num_draws=2.5), TypeError, "num_draws must be an "),
        (lambda: ContrastiveDiffusionLoss(VP, num_draws=0), ValueError, "num_draws must be an "),
        (lambda: ContrastiveDiffusionLoss(VP, zeta=(6, 15)), TypeError, "zeta must be a LogSNRDis"),
        (lambda: ContrastiveDiffusionLoss(VP, alpha=4.0), TypeError, "alpha must be a LogSNRDist"),
        (
            lambda: ContrastiveDiffusionLoss(VP, alpha=TruncatedLogistic(40.0, 1.0)),
            ValueError,
            "the log-SNR distribution is empty",
        ),
    ],
)
def test_rejects_settings(make: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


def identity(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
    return x


@pytest.mark.parametrize("loss", [DenoisingLoss, ContrastiveDiffusionLoss])
@pytest.mark.parametrize(
    ("model", "x", "cond", "error", "match"),
    [
        (identity, [[0.0]], {}, TypeError, "x must be a tensor, got list"),
        (identity, torch.zeros(2, 2, dtype=torch.uint8), {}, TypeError, r"x .*scale it first"),
        (identity, torch.zeros(3), {}, ValueError, r"x must have shape \[num_samples >= 1"),
        (identity, torch.zeros(0, 3), {}, ValueError, r"got \(0, 3\)"),
        (
            identity,
            torch.zeros(2, 3),
            {"label": torch.zeros(3)},
            ValueError,
            r"label must have one entry per sample, first dimension 2, got shape \(3,\)",
        ),
        (lambda x, t: None, torch.zeros(2, 3), {}, TypeError, "model must return a tensor, got"),
        (
            lambda x, t: x[:, :1],
            torch.zeros(2, 3),
            {},
            ValueError,
            r"model must return the shape of its input, \([26], 3\).*got \([26], 1\)",
        ),
    ],
)
def test_rejects_calls(
    loss: Any, model: Any, x: Any, cond: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        loss(VP)(model, x, generator=seeded(), **cond)


def test_rejects_more_points_than_samples() -> None:
    with pytest.raises(ValueError, match=r"num_points must be at most .* in x, 2, got 3"):
        ContrastiveDiffusionLoss(VP, num_points=3)(identity, torch.zeros(2, 2))


def test_alpha_is_cut_to_the_schedule() -> None:
    loss = ContrastiveDiffusionLoss(VP, alpha=TruncatedLogistic(4.0, 4.0, clip=4.0))
    assert isinstance(loss.alpha, LogSNRDistribution)
    assert loss.alpha.support == pytest.approx(VP.logsnr_range)
