"""Schedules against the formulas of their papers, and grids found by index."""

from __future__ import annotations

import json
import math

import pytest
import torch

from ctd_engine import schedules

F64 = torch.float64


def zero_terminal_snr(num_train_steps: int = 1000) -> schedules.Schedule:
    """Linear betas rescaled to alpha = 0 at the end (Lin et al. 2023, arXiv 2305.08891, Alg. 1)."""
    logsnrs = schedules.linear_beta(num_train_steps).logsnrs
    root = torch.sigmoid(logsnrs).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return schedules.from_alphas_cumprod(root.square())


ALL = {
    "linear_beta": schedules.linear_beta(),
    "scaled_linear_beta": schedules.scaled_linear_beta(),
    "cosine": schedules.cosine(),
    "karras": schedules.karras(),
    "flow": schedules.flow(3.0),
    "from_alphas_cumprod": zero_terminal_snr(),
}
each_schedule = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL.keys())


@each_schedule
def test_scales_are_those_of_the_kind(schedule):
    logsnr = torch.linspace(-15.0, 15.0, 31, dtype=F64)
    alpha, sigma = schedule.alpha_sigma(logsnr)
    torch.testing.assert_close(2 * torch.log(alpha / sigma), logsnr, rtol=1e-12, atol=1e-12)
    constant = {"vp": alpha**2 + sigma**2, "ve": alpha, "flow": alpha + sigma}[schedule.kind]
    torch.testing.assert_close(constant, torch.ones_like(logsnr), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "beta"),
    [
        ("linear_beta", lambda u: 1e-4 + u * (0.02 - 1e-4)),
        ("scaled_linear_beta", lambda u: (0.00085**0.5 + u * (0.012**0.5 - 0.00085**0.5)) ** 2),
    ],
)
def test_betas_of_the_papers(name, beta):
    schedule = schedules.get(name)()
    signal = 1.0
    for t in range(1000):
        signal *= 1.0 - beta(t / 999)
        if t in (0, 1, 500, 999):
            alpha, sigma = schedule.alpha_sigma(schedule.logsnrs[t])
            assert float(alpha**2) == pytest.approx(signal, rel=1e-12)
            assert float(sigma**2) == pytest.approx(1 - signal, rel=1e-10)


def test_cosine_is_equation_17():
    schedule = schedules.cosine()

    def f(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    # the clip of beta at 0.999 touches the last step alone
    for t in (1, 2, 400, 999):
        alpha, _ = schedule.alpha_sigma(schedule.logsnrs[t - 1])
        assert float(alpha**2) == pytest.approx(f(t) / f(0), rel=1e-10)
    last = torch.sigmoid(schedule.logsnrs[-2:])
    assert float(last[1] / last[0]) == pytest.approx(0.001, rel=1e-9)


def test_vp_grid_is_found_by_index():
    schedule = schedules.linear_beta()
    grid = schedule.grid(25)
    assert grid.time.tolist() == list(range(999, 38, -40))
    assert torch.equal(grid.logsnr[:-1], schedule.logsnrs[grid.time.long()])
    # one timestep, and all of them
    assert schedule.grid(1).time.tolist() == [999]
    assert schedule.grid(1000).time.tolist() == list(range(999, -1, -1))
    with pytest.raises(ValueError, match="at most the schedule's 1000 timesteps, got 1001"):
        schedule.grid(1001)


def test_vp_grid_never_repeats_a_timestep():
    schedule = schedules.linear_beta(101)
    for num_steps in range(1, 102):
        time = schedule.grid(num_steps).time
        assert len(time) == num_steps
        assert float(time[0]) == 100
        assert float(time[-1]) >= 0
        assert bool((time.diff() < 0).all())


@each_schedule
@pytest.mark.parametrize("num_steps", [1, 2, 17])
def test_every_grid(schedule, num_steps):
    grid = schedule.grid(num_steps)
    assert [len(v) for v in (grid.alpha, grid.sigma, grid.logsnr)] == [num_steps + 1] * 3
    assert len(grid.time) == num_steps
    assert all(v.dtype == F64 for v in (grid.alpha, grid.sigma, grid.logsnr, grid.time))
    assert bool((grid.logsnr.diff() > 0).all())
    # the sample itself carries no noise
    assert (float(grid.alpha[-1]), float(grid.sigma[-1])) == (1.0, 0.0)
    assert bool((grid.sigma[:-1] > 0).all())
    torch.testing.assert_close(schedule.time(grid.logsnr[:-1]), grid.time, rtol=1e-12, atol=1e-12)


def test_karras_is_equation_5():
    grid = schedules.karras(0.01, 50.0, rho=5.0).grid(9)
    low, high = 0.01 ** (1 / 5), 50.0 ** (1 / 5)
    expected = [(high + i / 8 * (low - high)) ** 5 for i in range(9)]
    assert grid.sigma.tolist() == pytest.approx([*expected, 0.0], rel=1e-12)
    assert grid.time.tolist() == pytest.approx(expected, rel=1e-12)
    assert float(grid.sigma[0]) == pytest.approx(50.0, rel=1e-14)
    assert float(grid.sigma[8]) == pytest.approx(0.01, rel=1e-13)
    assert schedules.karras(0.01, 50.0).grid(1).time.tolist() == [50.0]


def test_flow_shift():
    plain, shifted = schedules.flow().grid(10), schedules.flow(3.0).grid(10)
    assert plain.sigma.tolist() == pytest.approx([1 - i / 10 for i in range(11)], abs=1e-15)
    expected = [3 * t / (1 + 2 * t) for t in plain.sigma.tolist()]
    assert shifted.sigma.tolist() == pytest.approx(expected, abs=1e-15)
    # alpha / sigma is divided by the shift
    moved = plain.logsnr[1:-1] - 2 * math.log(3.0)
    torch.testing.assert_close(shifted.logsnr[1:-1], moved, rtol=1e-12, atol=1e-12)
    assert float(shifted.alpha[0]) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_vp_time_interpolates_and_clamps(dtype):
    schedule = schedules.linear_beta()
    logsnrs = schedule.logsnrs
    quarter = 0.75 * logsnrs[500] + 0.25 * logsnrs[501]
    value = torch.stack([logsnrs[500], quarter, logsnrs[0] + 3, logsnrs[-1] - 3]).to(dtype)
    seen = schedule.time(value.view(2, 2))
    assert seen.dtype == dtype
    # one ulp of fp32 at log-SNR -2.5 is 2e-7 and a timestep is 0.01 of log-SNR
    tolerance = 1e-9 if dtype == F64 else 1e-4
    assert seen.flatten().tolist() == pytest.approx([500, 500.25, 0, 999], abs=tolerance)
    ends = schedule.time(torch.tensor([math.inf, -math.inf], dtype=dtype))
    assert ends.tolist() == [0, 999]


def test_time_of_a_schedule_with_one_timestep():
    schedule = schedules.from_alphas_cumprod(torch.tensor([0.5]))
    assert schedule.time(torch.tensor([[-9.0, 0.0, 9.0]])).tolist() == [[0.0, 0.0, 0.0]]


def test_native_times_of_ve_and_flow():
    logsnr = torch.tensor([-4.0, 0.0, 2.0], dtype=F64)
    for schedule in (schedules.karras(), schedules.flow(3.0)):
        assert torch.equal(schedule.time(logsnr), schedule.alpha_sigma(logsnr)[1])


def test_zero_terminal_snr():
    schedule = zero_terminal_snr()
    assert float(schedule.logsnrs[-1]) == -math.inf
    low, high = schedule.logsnr_range
    assert (low, high) == (float(schedule.logsnrs[-2]), float(schedule.logsnrs[0]))
    grid = schedule.grid(10)
    assert (float(grid.alpha[0]), float(grid.sigma[0])) == (0.0, 1.0)
    assert bool(torch.isfinite(grid.logsnr[1:-1]).all())
    # any finite level is less noisy than the last timestep
    value = torch.tensor([-math.inf, low - 50.0, low, high], dtype=F64)
    assert schedule.time(value).tolist() == [999.0, 998.0, 998.0, 0.0]


@each_schedule
def test_config_round_trip(schedule):
    again = schedules.from_config(json.loads(json.dumps(schedule.config)))
    assert (again.name, again.kind, again.config) == (
        schedule.name,
        schedule.kind,
        schedule.config,
    )
    assert torch.equal(again.logsnrs, schedule.logsnrs)
    assert torch.equal(again.times, schedule.times)


def test_every_argument_survives_the_config():
    for schedule in (
        schedules.linear_beta(10, 0.01, 0.3),
        schedules.scaled_linear_beta(11, 0.02, 0.2),
        schedules.cosine(12, 0.1, 0.9),
        schedules.karras(0.1, 3.0, 2.0),
        schedules.flow(0.5),
    ):
        again = schedules.from_config(schedule.config)
        assert torch.equal(again.grid(5).logsnr, schedule.grid(5).logsnr)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: schedules.linear_beta(0), ValueError, "num_train_steps must be an integer >= 1"),
        (lambda: schedules.linear_beta(True), TypeError, "num_train_steps must be an integer"),
        (lambda: schedules.linear_beta(10, 0.0, 0.1), ValueError, "beta_start must be > 0"),
        (lambda: schedules.linear_beta(10, 0.1, 1.0), ValueError, r"must lie in \(0, 1\)"),
        (lambda: schedules.scaled_linear_beta(9, -1.0), ValueError, "beta_start must be > 0"),
        (lambda: schedules.cosine(9, max_beta=1.5), ValueError, r"betas of cosine must lie"),
        (lambda: schedules.from_alphas_cumprod(torch.ones(2, 2)), ValueError, r"shape \[M\]"),
        (lambda: schedules.from_alphas_cumprod(torch.ones(2)), ValueError, r"lie in \[0, 1\)"),
        (
            lambda: schedules.from_alphas_cumprod(torch.tensor([0.9, 0.5, 0.5])),
            ValueError,
            "decrease strictly",
        ),
        (
            lambda: schedules.from_alphas_cumprod(torch.tensor([0.9, 0.0, 0.0])),
            ValueError,
            "decrease strictly",
        ),
        (
            lambda: schedules.from_alphas_cumprod(torch.tensor([0.9, math.nan])),
            ValueError,
            r"lie in \[0, 1\)",
        ),
        (lambda: schedules.karras(0.0), ValueError, "sigma_min must be > 0"),
        (lambda: schedules.karras(2.0, 1.0), ValueError, "sigma_max must be > 2"),
        (lambda: schedules.karras(rho=0.0), ValueError, "rho must be > 0"),
        (lambda: schedules.karras(rho="7"), TypeError, "rho must be a number"),
        (lambda: schedules.flow(0.0), ValueError, "shift must be > 0"),
        (lambda: schedules.flow(math.inf), ValueError, "shift must be finite"),
        (lambda: schedules.get("Cosine"), ValueError, 'schedule must be one of "linear_beta"'),
        (lambda: schedules.from_config({}), ValueError, "needs a name"),
        (lambda: schedules.from_config({"name": "edm"}), ValueError, "schedule must be one of"),
        (lambda: schedules.from_config({"name": "flow", "s": 1}), ValueError, "schedule 'flow'"),
        (lambda: ALL["karras"].grid(0), ValueError, "num_steps must be an integer >= 1, got 0"),
        (lambda: ALL["flow"].grid(1.5), TypeError, "num_steps must be an integer, got float"),
        (lambda: ALL["cosine"].grid(True), TypeError, "num_steps must be an integer, got bool"),
        (
            lambda: schedules.Schedule("x", "VP", torch.zeros(1), torch.zeros(1)),
            ValueError,
            "kind must be one of",
        ),
        (
            lambda: schedules.Schedule("x", "vp", torch.zeros(1), torch.zeros(1)),
            ValueError,
            "logsnrs must be a float64 tensor",
        ),
        (
            lambda: schedules.Schedule(
                "x", "vp", torch.zeros(1, dtype=F64), torch.zeros(2, dtype=F64)
            ),
            ValueError,
            "one length >= 1, got 1 and 2",
        ),
    ],
)
def test_rejects(call, error, match):
    with pytest.raises(error, match=match):
        call()
