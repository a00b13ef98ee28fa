"""The distributions in 1D and 2D: samples, densities and scores belong together."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from ctd_engine import schedules, solvers
from ctd_engine.exact import MixtureModel
from ctd_engine.experiments.shapes import SHAPES, Checkerboard, Mixture, get_shape, two_gaussians

MIXTURES = [name for name in SHAPES if name != "checkerboard"]


def draw(distribution, count, seed=0):
    return distribution.sample(count, torch.Generator().manual_seed(seed))


FIELD = Checkerboard().field


@functools.cache
def mass(name):
    """Points [P, 2] of a grid that fits the checkerboard's fields, and the mass around each."""
    spacing = FIELD / 30
    axis = torch.arange(-120, 120, dtype=torch.float64) * spacing + spacing / 2
    points = torch.cartesian_prod(axis, axis)
    return points, get_shape(name).log_density(points).exp() * spacing**2


@pytest.mark.parametrize("name", SHAPES)
def test_density_integrates_to_one_with_mean_zero_and_variance_one(name):
    points, share = mass(name)
    assert float(share.sum()) == pytest.approx(1.0, abs=1e-3)
    assert float((share[:, None] * points).sum(0).abs().max()) < 1e-3
    assert float((share[:, None] * points.square()).sum() / 2) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", SHAPES)
def test_samples_follow_the_density(name):
    shape = get_shape(name)
    x = draw(shape, 20_000)
    assert x.dtype == torch.float32
    assert x.shape == (20_000, 2)
    assert bool(torch.isfinite(shape.log_density(x)).all())
    # the share of every field of the board, within five standard deviations
    points, share = mass(name)

    def field(p):
        place = (p.double() / FIELD + 4.0).long().clamp(0, 7)
        return place[:, 0] * 8 + place[:, 1]

    expected = torch.zeros(64, dtype=torch.float64).index_add(0, field(points), share)
    found = torch.bincount(field(x), minlength=64) / len(x)
    assert bool(((found - expected).abs() <= 5 * (expected / len(x)).sqrt() + 1e-3).all())


@pytest.mark.parametrize("name", MIXTURES)
def test_samples_lie_on_the_lines(name):
    shape = get_shape(name)
    nearest = torch.cdist(draw(shape, 2000).double(), shape.means).amin(1)
    assert float(nearest.max()) < 5.5 * shape.std


def test_samples_repeat_and_differ_by_seed():
    for name in SHAPES:
        assert torch.equal(draw(get_shape(name), 5), draw(get_shape(name), 5))
        assert not torch.equal(draw(get_shape(name), 5), draw(get_shape(name), 5, seed=1))


@pytest.mark.parametrize("mixture", [two_gaussians(), get_shape("moons")], ids=["1d", "moons"])
def test_exact_score_is_the_slope_of_the_noised_density(mixture):
    table = solvers.ddpm(schedules.linear_beta(), 10)
    model = MixtureModel(table, mixture.means, mixture.std)
    dim, step = mixture.means.shape[1], 1e-4
    for logsnr in (-4.0, 0.0, 3.0):
        noised = mixture.noised(logsnr)
        z = draw(noised, 20).double() + 0.3
        slopes = [
            (noised.log_density(z + offset) - noised.log_density(z - offset)) / (2 * step)
            for offset in step * torch.eye(dim, dtype=torch.float64)
        ]
        score = model.score(z, torch.full((20,), logsnr, dtype=torch.float64))
        assert torch.allclose(torch.stack(slopes, 1), score, rtol=1e-4, atol=1e-5)


def test_noised_is_the_distribution_of_noised_samples():
    mixture, logsnr = two_gaussians(), 1.0
    noised = mixture.noised(logsnr)
    signal = 1 / (1 + math.exp(-logsnr))
    assert float(noised.means.max()) == pytest.approx(5 * math.sqrt(signal))
    # modes of variance 1 keep it on a variance-preserving path
    assert noised.std == pytest.approx(1.0)
    assert Mixture(mixture.means, 0.1).noised(logsnr).std == pytest.approx(
        math.sqrt(signal * 0.01 + 1 - signal)
    )


def test_lines_are_even():
    means = get_shape("spirals").means
    arms = means.reshape(2, -1, 2)
    distances = arms.diff(dim=1).norm(dim=2)
    assert float(distances.max() / distances.min()) < 1.02
    assert torch.allclose(arms[0], -arms[1], atol=1e-12)
    # nearer than the thickness of the line, so that it has no holes
    assert float(distances.max()) < get_shape("spirals").std


def test_unknown_name():
    with pytest.raises(ValueError, match="shape must be one of spirals, moons"):
        get_shape("torus")
