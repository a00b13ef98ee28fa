"""Speculative acceptance: the law is the sequential solver's, in no more rounds."""

from __future__ import annotations

import pytest
import torch

from ctd_engine.exact import MixtureModel
from round_problems import Problem, energy_distance, make
from round_speculative import couple, speculate


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("length", [0.0, 0.3, 1.5, 5.0])
def test_the_coupled_noise_is_normal(length):
    """Whatever the draft's mean: moments to the fourth along delta and across it."""
    number = 60_000
    z = torch.randn(number, 2, generator=_generator(), dtype=torch.float64)
    delta = torch.tensor([[0.6, 0.8]], dtype=torch.float64).expand(number, 2) * length
    chance = torch.rand(number, generator=_generator(1), dtype=torch.float64)
    noise, stands = couple(z, delta, chance)
    direction = torch.tensor([[0.6, 0.8], [0.8, -0.6]], dtype=torch.float64)
    along = noise @ direction.T
    # five standard errors of each moment; those of x, x², x³ and x⁴ are 1, 2, 15 and 96
    for power, (moment, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        bound = 5 * (variance / number) ** 0.5
        assert ((along**power).mean(0) - moment).abs().max() <= bound
    assert along.prod(1).mean().abs() <= 5 * number**-0.5
    # no coupling keeps more: 2 Phi(-length / 2)
    kept = 2 * float(torch.special.ndtr(torch.tensor(-length / 2, dtype=torch.float64)))
    assert float(stands.double().mean()) == pytest.approx(kept, abs=0.012)
    assert (noise - z - delta)[stands].abs().max() <= 1e-12


@pytest.mark.parametrize("is_picard", [False, True])
@pytest.mark.parametrize("window", [1, 5, 20])
def test_the_law_of_samples_is_the_solvers(window, is_picard):
    """Normal data: DDPM is linear there, so the law of its samples is known in closed form."""
    table = make("mixture 2", 20, 1.0).table
    means = torch.tensor([[0.7, -0.2]], dtype=torch.float64)
    problem = Problem(MixtureModel(table, means, 0.3), table, (2,))
    number = 20_000
    cost = speculate(problem, window, number, _generator(), is_picard=is_picard)
    mean, variance = torch.zeros(1, 2, dtype=torch.float64), 1.0
    for i in range(table.num_nodes):
        alpha, sigma = float(table.alpha[i]), float(table.sigma[i])
        j = alpha * 0.09 / (alpha**2 * 0.09 + sigma**2)
        a, b, c = (float(v) for v in (table.A_x0[i, 0], table.B_x0[i, 0], table.C[i]))
        mean = a * mean + b * (means + j * (mean - alpha * means))
        variance = (a + b * j) ** 2 * variance + c**2
    error = (cost.samples.mean(0) - mean[0]).abs().max()
    assert error <= 5 * (variance / number) ** 0.5
    assert cost.samples.var(0).sub(variance).abs().max() <= 5 * variance * (2 / number) ** 0.5
    assert (cost.rounds <= 20).all()


@pytest.mark.parametrize("is_picard", [False, True])
def test_the_law_of_a_mixture(is_picard):
    """Near that of sequential samples as these are to each other; in fewer rounds."""
    problem = make("mixture 2", 30, 1.0)
    cost = speculate(problem, 30, 1500, _generator(), is_picard=is_picard)
    distance = energy_distance(cost.samples, problem.sequential(1500, 0))
    assert abs(distance) <= 0.01
    assert float(cost.rounds.double().mean()) < 20
    assert (cost.evaluations >= 30).all()


def test_drafts_of_picards_update_are_accepted_sooner():
    """On wide data, whose x0 moves long before it is decided."""
    problem = make("digits 0.3", 100, 1.0)
    held, picard = (
        speculate(problem, 100, 8, _generator(), is_picard=p).rounds.double().mean()
        for p in (False, True)
    )
    assert picard < 0.85 * held


def test_a_window_of_one_is_the_sequential_solver():
    cost = speculate(make("digits 0.1", 12, 1.0), 1, 3, _generator())
    assert cost.rounds.tolist() == cost.evaluations.tolist() == [12, 12, 12]
    with pytest.raises(ValueError, match="without clipping"):
        speculate(make("checkpoint", 12, 1.0), 1, 3, _generator())
