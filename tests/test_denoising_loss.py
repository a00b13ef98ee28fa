"""The denoising loss: known minima, levels and precisions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ctd_engine import schedules
from ctd_engine.losses import ContrastiveDiffusionLoss, DenoisingLoss
from gaussian_problem import (
    SIGMA_DATA,
    ExactModel,
    GaussianProblem,
)
from loss_problem import SCHEDULES, seeded


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
