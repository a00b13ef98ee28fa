"""The losses as they are called: random numbers, rows, gradients and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ctd_engine import schedules
from ctd_engine.logsnr_distributions import LogSNRDistribution, TruncatedLogistic
from ctd_engine.losses import ContrastiveDiffusionLoss, DenoisingLoss
from gaussian_problem import (
    ExactModel,
    GaussianProblem,
)
from loss_problem import mlp, seeded


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
