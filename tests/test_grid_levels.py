"""Models that look their timestep up in a table: levels on the grid, and the same log ratio."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctd_engine import schedules, solvers
from ctd_engine._contrast import Contrast
from ctd_engine._grid_levels import GridLevels
from ctd_engine.likelihood import NoiseClassifier, denoising_errors
from ctd_engine.logsnr_distributions import TruncatedLogistic, Uniform
from ctd_engine.losses import ContrastiveDiffusionLoss, DenoisingLoss
from gaussian_problem import ExactModel, GaussianProblem, contrast_points

F64 = torch.float64
ALPHA = TruncatedLogistic(0.5, 2.0, clip=10.0)
COARSE = schedules.linear_beta(20, 1e-3, 0.7)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TableModel:
    """The exact denoiser, which knows the noise level of a timestep from a table alone."""

    def __init__(self, problem: GaussianProblem, schedule: schedules.Schedule) -> None:
        self.exact, self.levels = ExactModel(problem, schedule, "epsilon"), schedule.logsnrs

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.int64
        return self.exact(x, self.levels[t])


def test_moved_levels_are_neighbours_and_keep_the_mean() -> None:
    grid = COARSE.logsnrs
    low, high = COARSE.logsnr_range
    levels = torch.linspace(low, high, 37, dtype=F64)
    moved = GridLevels(COARSE).moved(levels[:, None].expand(-1, 40_000), seeded())
    assert bool(torch.isin(moved, grid).all())
    right = torch.searchsorted(-grid, -levels).clamp(1, len(grid) - 1)
    widths = grid[right - 1] - grid[right]
    assert bool(((moved - levels[:, None]).abs() <= widths[:, None] + 1e-12).all())
    # a share f in one of two places: standard deviation at most half of the width
    assert bool(((moved.mean(1) - levels).abs() <= 4 * 0.5 * widths / 200 + 1e-12).all())
    stays = GridLevels(COARSE).moved(grid[:, None].expand(-1, 1000), seeded())
    assert bool((stays == grid[:, None]).all())


def test_shares_below_alpha_interpolate_to_nothing_at_alpha() -> None:
    grid, levels = COARSE.logsnrs, GridLevels(COARSE)
    alpha = grid[4].expand(40_000)
    for way in (0.0, 0.3, 0.99):
        beta = torch.lerp(alpha, grid[5], way)
        moved, share = levels.moved_below(beta, alpha, seeded())
        assert set(moved.tolist()) == {float(grid[5])}
        torch.testing.assert_close(share, torch.full_like(share, way))
    # farther below it is a choice as anywhere
    moved, share = levels.moved_below(
        torch.lerp(grid[6], grid[7], 0.3).expand(40_000), alpha, seeded()
    )
    assert set(share.tolist()) == {1.0}
    assert float((moved == grid[7]).double().mean()) == pytest.approx(0.3, abs=0.01)
    # the noisiest level has no neighbour below, and zeta = inf is no noise
    end = grid[-1:]
    assert levels.moved_below(end - 1.0, end, seeded())[0].tolist() == end.tolist()


@pytest.mark.parametrize("common_random_numbers", [True, False])
def test_log_ratio_is_the_closed_form_up_to_the_grid(common_random_numbers: bool) -> None:
    schedule, problem = schedules.linear_beta(), GaussianProblem(3)
    zeta = 3.0
    z = torch.cat([problem.sample(1), problem.sample(1, zeta=zeta)])
    rows = z.repeat_interleave(100_000, 0)
    contrast = Contrast(schedule, prediction="epsilon", time="index", sigma_data=0.5, alpha=ALPHA)
    _, delta = contrast_points(
        contrast,
        TableModel(problem, schedule),
        rows,
        torch.full((len(rows),), zeta, dtype=F64),
        torch.ones(len(rows)),
        1,
        seeded(3),
        common_random_numbers=common_random_numbers,
        alpha_given_zeta=common_random_numbers,
    )
    delta = delta.view(2, -1)
    error = delta.std(1) / math.sqrt(delta.shape[1])
    exact = problem.log_ratio(z, zeta)
    assert float(((delta.mean(1) - exact).abs() - 0.02 * exact.abs() - 4 * error).max()) < 0
    if common_random_numbers:
        assert float((error / exact.abs().max()).max()) < 0.02


@pytest.mark.parametrize("zeta", [6.0, 10.5])
def test_little_noise_is_still_told_without_more_variance(zeta: float) -> None:
    # nearly every beta lies between alpha and the next timestep
    schedule, problem = schedules.linear_beta(), GaussianProblem(3)
    z = problem.sample(1).expand(60_000, 3)
    results = []
    for time in ("index", "logsnr"):
        model: Any = TableModel(problem, schedule)
        contrast = Contrast(schedule, prediction="epsilon", time=time, sigma_data=0.5, alpha=ALPHA)
        _, delta = contrast_points(
            contrast,
            model if time == "index" else model.exact,
            z,
            torch.full((len(z),), zeta, dtype=F64),
            torch.ones(len(z)),
            1,
            seeded(4),
        )
        results.append((float(delta.mean()), float(delta.std())))
    (on_grid, spread), (anywhere, other_spread) = results
    assert on_grid == pytest.approx(anywhere, abs=0.03 * abs(anywhere) + 8 * spread / 60_000**0.5)
    assert spread < 1.1 * other_spread


def test_noise_classifier_and_likelihood_of_a_table_model() -> None:
    schedule, problem = schedules.linear_beta(), GaussianProblem(2)
    model = TableModel(problem, schedule)
    judge = NoiseClassifier(
        model, schedule, time="index", alpha=ALPHA, num_draws=40_000, max_rows=100_000
    )
    z = problem.sample(2)
    zetas = [0.0, 3.0]
    ratio = judge.log_ratio(z, zetas, generator=seeded(1))
    exact = torch.stack([problem.log_ratio(z, zeta) for zeta in zetas], 1)
    slack = 4 * ratio.standard_error + 0.02 * exact.abs()
    assert bool(((ratio.value - exact).abs() < slack).all())
    assert judge.log_ratio(z, math.inf, generator=seeded()).value.tolist() == [0.0, 0.0]
    density = judge.log_likelihood(z, generator=seeded(2))
    slack = 4 * density.standard_error + 0.02
    assert bool(((density.value - problem.log_density(z)).abs() < slack).all())
    # levels go to their timestep, so that the time that is told is true
    levels = [schedule.logsnrs[300] + 1e-4, schedule.logsnrs[700] - 1e-4]
    errors = denoising_errors(
        model, problem.sample(4000), schedule, levels, time="index", generator=seeded(3)
    )
    snr = schedule.logsnrs[[300, 700]].exp()[:, None] * problem.variances
    deviation = (errors.value - (snr / (snr + 1.0)).sum(1)) / errors.standard_error
    assert float(deviation.abs().max()) < 4.0


class EmbeddingNetwork(nn.Module):
    def __init__(self, num_steps: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.time, self.out = nn.Embedding(num_steps, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.out(torch.tanh(x + self.time(t)))
        return out


@pytest.mark.parametrize("contrastive", [True, False])
def test_embeddings_of_timesteps_are_trained(contrastive: bool) -> None:
    network, x = EmbeddingNetwork(20), torch.randn(64, 3, generator=seeded())
    loss: Any = DenoisingLoss(COARSE, time="index")
    if contrastive:
        loss = ContrastiveDiffusionLoss(COARSE, time="index", zeta=Uniform(-2.0, 4.0))
    for _ in range(5):
        loss(network, x, generator=seeded(1)).backward()
    gradient = network.time.weight.grad
    assert gradient is not None
    assert bool(gradient.isfinite().all())
    assert int(gradient.abs().sum(1).gt(0).sum()) > 15


def test_zero_terminal_snr() -> None:
    schedule = schedules.from_alphas_cumprod(torch.linspace(0.99, 0.0, 20, dtype=F64))
    seen: list[Tensor] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return x

    loss = ContrastiveDiffusionLoss(
        schedule, prediction="v", time="index", num_points=400, zeta=Uniform(-5.0, 3.0)
    )
    value = loss(model, torch.randn(400, 2), generator=seeded())
    assert bool(value.isfinite())
    # pure noise is a level of the denoising term, and none of the contrastive one
    assert int(seen[0][:400].max()) == 19
    assert int(seen[0][400:].max()) == 18


def test_solvers_tell_whole_numbers() -> None:
    table = solvers.ddpm(schedules.linear_beta(), num_steps=7, time="index")
    plain = solvers.ddpm(schedules.linear_beta(), num_steps=7)
    assert table.model_time.dtype == F64
    assert table.model_time.tolist() == plain.model_time.tolist()


def test_a_schedule_copies_its_grid_once() -> None:
    schedule = schedules.linear_beta()
    first, second = (schedule.on(torch.device("meta")) for _ in range(2))
    assert first[0] is second[0]
    assert first[1] is second[1]
    assert first[0].device.type == "meta"


def test_rejects() -> None:
    with pytest.raises(ValueError, match='time "index" needs a schedule with discrete timesteps'):
        DenoisingLoss(schedules.karras(), time="index")
    with pytest.raises(ValueError, match='time "index" needs levels "discrete"'):
        ContrastiveDiffusionLoss(COARSE, time="index", levels=Uniform(-2.0, 2.0))
