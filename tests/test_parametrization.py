"""What raw model outputs mean: the three linear maps agree with each other and with the papers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ctd_engine import schedules, solvers
from ctd_engine.parametrization import (
    PREDICTIONS,
    check_prediction,
    check_time,
    data_coefficients,
    model_time,
    noise_coefficients,
    target_coefficients,
)


def scales(kind: str) -> tuple[Tensor, Tensor]:
    logsnr = torch.linspace(-20.0, 20.0, 41, dtype=torch.float64)
    if kind == "vp":
        return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()
    if kind == "ve":
        return torch.ones_like(logsnr), torch.exp(-0.5 * logsnr)
    return torch.sigmoid(0.5 * logsnr), torch.sigmoid(-0.5 * logsnr)


@pytest.mark.parametrize("kind", ["vp", "ve", "flow"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_output_gives_back_data_and_noise(prediction: str, kind: str) -> None:
    if prediction == "v" and kind != "vp":
        pytest.skip("refused, see test_rejects")
    alpha, sigma = scales(kind)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, len(alpha), generator=generator, dtype=torch.float64)
    x = alpha * x0 + sigma * eps
    p, q = target_coefficients(prediction, alpha, sigma, 0.7)
    target = p * x0 + q * eps
    x0_x, x0_m, input_scale = data_coefficients(prediction, alpha, sigma, 0.7)
    eps_x, eps_m, same_scale = noise_coefficients(prediction, alpha, sigma, 0.7)
    assert torch.equal(input_scale, same_scale)
    # the error that fp64 leaves when the wanted part is a small share of x
    loss_x0 = 1e-15 * (1 + sigma / alpha) * (1 + (x0_x * x).abs() + (x0_m * target).abs())
    loss_eps = 1e-15 * (1 + alpha / sigma) * (1 + (eps_x * x).abs() + (eps_m * target).abs())
    assert bool(((x0_x * x + x0_m * target - x0).abs() <= 4 * loss_x0).all())
    assert bool(((eps_x * x + eps_m * target - eps).abs() <= 4 * loss_eps).all())


def test_v_takes_levels_rounded_to_float32() -> None:
    schedule = schedules.scaled_linear_beta()
    alpha, sigma = schedule.alpha_sigma(schedule.logsnrs[::100].flip(0))
    times = schedule.times[::100].flip(0)[:-1]
    rounded = schedules.Grid.from_levels(alpha.float(), sigma.float(), times)
    exact = schedules.Grid.from_levels(alpha, sigma, times)
    tables = [solvers.ddim(schedule, grid, prediction="v") for grid in (rounded, exact)]
    torch.testing.assert_close(tables[0].B, tables[1].B, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r'"v" needs alpha\^2 \+ sigma\^2 = 1'):
        data_coefficients("v", alpha * 1.00001, sigma, 0.5)


def test_edm_is_the_table_of_the_paper() -> None:
    sigma, sd = torch.logspace(-3, 2, 30, dtype=torch.float64), 0.5
    c_skip, c_out, c_in = data_coefficients("edm", torch.ones_like(sigma), sigma, sd)
    torch.testing.assert_close(c_skip, sd**2 / (sigma**2 + sd**2))
    torch.testing.assert_close(c_out, sigma * sd / (sigma**2 + sd**2).sqrt())
    torch.testing.assert_close(c_in, 1 / (sigma**2 + sd**2).sqrt())
    # alpha != 1: the same network sees x / alpha at sigma / alpha
    alpha = torch.full_like(sigma, 0.3)
    scaled = data_coefficients("edm", alpha, alpha * sigma, sd)
    torch.testing.assert_close(scaled[0] * alpha, c_skip)
    torch.testing.assert_close(scaled[1], c_out)
    torch.testing.assert_close(scaled[2] * alpha, c_in)


def test_epsilon_keeps_the_noise_exactly_in_fp32() -> None:
    alpha, sigma = (s.float() for s in scales("vp"))
    eps_x, eps_m, _ = noise_coefficients("epsilon", alpha, sigma)
    assert torch.equal(eps_x, torch.zeros_like(eps_x))
    assert torch.equal(eps_m, torch.ones_like(eps_m))


@pytest.mark.parametrize("prediction", ["x0", "v", "flow", "edm"])
def test_zero_terminal_snr_is_legal_where_it_means_something(prediction: str) -> None:
    alpha, sigma = torch.zeros(1), torch.ones(1)
    for coefficient in data_coefficients(prediction, alpha, sigma):
        assert bool(coefficient.isfinite().all())


def test_model_times() -> None:
    schedule = schedules.linear_beta()
    logsnr = schedule.logsnrs[[0, 10, 999]]
    sigma = torch.exp(-0.5 * logsnr)
    native = torch.tensor([0.0, 10.0, 999.0], dtype=torch.float64)
    expected = {
        None: native,
        "timestep": native,
        "logsnr": logsnr,
        "sigma": sigma,
        "c_noise": sigma.log() / 4,
        "flow": sigma / (1 + sigma),
    }
    for time, values in expected.items():
        torch.testing.assert_close(model_time(time, schedule, "epsilon", logsnr), values)
    torch.testing.assert_close(model_time(None, schedule, "edm", logsnr), sigma.log() / 4)


ONE, HALF, ZERO = torch.ones(1), torch.full((1,), 0.5), torch.zeros(1)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: check_prediction("eps"), ValueError, 'prediction must be one of "epsilon".*"eps"'),
        (lambda: check_prediction(1), TypeError, "prediction must be a string, got int"),
        (lambda: check_prediction("v", schedules.karras()), ValueError, "variance-preserving"),
        (lambda: check_time("t"), ValueError, 'time must be None or one of "timestep"'),
        (lambda: check_time(3), TypeError, "time must be a string or None, got int"),
        (lambda: check_time("timestep", schedules.flow()), ValueError, "discrete timesteps"),
        (lambda: data_coefficients("epsilon", ZERO, ONE), ValueError, "zero terminal SNR"),
        (lambda: data_coefficients("v", ONE, ONE), ValueError, r"alpha\^2 \+ sigma\^2 = 1"),
        (lambda: data_coefficients("x0", ONE, torch.ones(2)), ValueError, "sigma must have the sh"),
        (lambda: data_coefficients("edm", ONE, ONE, 0.0), ValueError, "sigma_data must be positi"),
        (lambda: noise_coefficients("x0", ONE, ZERO), ValueError, "sigma must be positive"),
        (
            lambda: model_time("logsnr", schedules.flow(), "flow", torch.tensor([-torch.inf])),
            ValueError,
            'time "logsnr" is infinite where alpha = 0',
        ),
    ],
)
def test_rejects(call: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
