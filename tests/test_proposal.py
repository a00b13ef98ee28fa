"""Importance sampling of alpha given zeta: a density, its samples, and the same delta."""

from __future__ import annotations

import math

import pytest
import torch

from ctd_engine import schedules
from ctd_engine._contrast import Contrast
from ctd_engine._proposal import GivenZeta
from ctd_engine.logsnr_distributions import LogSNRDistribution, TruncatedLogistic, Uniform
from gaussian_problem import ExactModel, GaussianProblem, contrast_points, wide_schedule

BASES: dict[str, LogSNRDistribution] = {
    "logistic": TruncatedLogistic(3.5, 1.5, clip=4.0),
    "default, cut by a schedule": TruncatedLogistic(4.0, 4.0).truncated(
        *schedules.linear_beta().logsnr_range
    ),
    "cut below its location": TruncatedLogistic(4.0, 4.0).truncated(-8.0, 2.0),
    "uniform": Uniform(-3.0, 5.0),
}
ZETA = torch.tensor([-5.0, 3.0, 7.0, 15.0, math.inf], dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", BASES)
def test_samples_follow_the_density(name: str) -> None:
    base = BASES[name]
    proposal = GivenZeta(base)
    low, high = base.support
    grid = torch.linspace(low, high, 20_001, dtype=torch.float64).expand(len(ZETA), -1)
    density = proposal.density(grid, ZETA)
    cdf = torch.cumulative_trapezoid(density, grid[0])
    torch.testing.assert_close(cdf[:, -1], torch.ones_like(ZETA), rtol=0.0, atol=1e-5)
    alpha, drawn_from = proposal.sample(ZETA, 20_000, seeded())
    torch.testing.assert_close(drawn_from, proposal.density(alpha, ZETA))
    assert alpha.shape == (len(ZETA), 20_000)
    assert low <= float(alpha.min()) <= float(alpha.max()) <= high
    for row, expected in zip(alpha, cdf, strict=True):
        observed = torch.searchsorted(row.sort().values, grid[0, 1:].contiguous()) / len(row)
        # kolmogorov: exceeded once in 10^5 samples
        assert float((observed - expected).abs().max()) < 2.5 / math.sqrt(len(row))


def test_no_weight_is_more_than_twice_the_base() -> None:
    for base in BASES.values():
        low, high = base.support
        alpha = torch.linspace(low, high, 1001, dtype=torch.float64).expand(len(ZETA), -1)
        density = GivenZeta(base).density(alpha, ZETA)
        assert bool((density >= 0.5 * base.density(alpha)).all())
        outside = torch.tensor([[low - 0.1, high + 0.1]], dtype=torch.float64)
        assert float(GivenZeta(base).density(outside, ZETA[:1]).abs().max()) == 0.0


@pytest.mark.parametrize("zeta", [0.0, 3.0, 8.0])
def test_delta_is_the_closed_form(zeta: float) -> None:
    schedule, problem = wide_schedule(), GaussianProblem(3)
    z = torch.cat([problem.sample(1), problem.sample(1, zeta=zeta)])
    rows = z.repeat_interleave(60_000, 0)
    contrast = Contrast(
        schedule,
        prediction="epsilon",
        time="logsnr",
        sigma_data=0.5,
        alpha=TruncatedLogistic(0.5, 2.0, clip=10.0),
    )
    _, delta = contrast_points(
        contrast,
        ExactModel(problem, schedule, "epsilon"),
        rows,
        torch.full((len(rows),), zeta, dtype=torch.float64),
        torch.ones(len(rows)),
        1,
        seeded(3),
        alpha_given_zeta=True,
    )
    delta = delta.view(2, -1)
    error = delta.std(1) / math.sqrt(delta.shape[1])
    deviation = (delta.mean(1) - problem.log_ratio(z, zeta)) / error
    assert float(deviation.abs().max()) < 4.0
    assert float((error / problem.log_ratio(z, zeta).abs()).max()) < 0.1


def test_a_model_is_asked_within_its_schedule_however_coarse_the_noise() -> None:
    schedule, problem = schedules.karras(), GaussianProblem(2)
    contrast = Contrast(
        schedule,
        prediction="epsilon",
        time="logsnr",
        sigma_data=0.5,
        alpha=TruncatedLogistic(0.0, 2.0, clip=10.0),
    )
    z = problem.sample(2)
    rows = z.repeat_interleave(100_000, 0)
    zeta = torch.full((len(rows),), -4.0, dtype=torch.float64)
    exact = ExactModel(problem, schedule, "epsilon")
    asked: list[torch.Tensor] = []

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked.append(t)
        return exact(x, t)

    _, delta = contrast_points(
        contrast, model, rows, zeta, torch.ones(len(rows)), 1, seeded(4), alpha_given_zeta=True
    )
    low, high = schedule.logsnr_range
    assert low <= float(asked[0].min()) < low + 0.5
    assert float(asked[0].max()) <= high
    # what lies below the schedule is noise to all digits that count
    delta = delta.view(2, -1)
    error = delta.std(1) / math.sqrt(delta.shape[1])
    truth = problem.log_ratio(z, -4.0)
    assert bool(((delta.mean(1) - truth).abs() < 4 * error + 0.01 * truth.abs()).all())
    assert float((error / truth.abs().max()).max()) < 0.02
