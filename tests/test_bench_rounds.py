"""The rounds benchmark: every problem runs, its numbers are what they say, the peer is a peer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bench_rounds import Case, measure, references
from ctd_engine.exact import MixtureModel
from round_ideas import IDEAS, Idea
from round_ideas import run as run_idea
from round_problems import METHODS, Problem, energy_distance, make

UPDATES = ("picard", "secant", "newton", "eigen")
SMALL = Case("mixture 2", 12, 0.0, 12, num_seeds=2, num_samples=3)


@pytest.mark.parametrize("name", METHODS)
def test_a_line_of_every_method(name):
    """At tolerance 0 no error is left; at 0.5 there is one, for fewer rounds and evaluations."""
    truth, others = references(SMALL)
    exact, loose = (measure(SMALL, name, t, truth, others) for t in (0.0, 0.5))
    assert exact.rms <= 1e-12
    assert exact.far == 0.0
    assert 1e-6 < loose.rms < 0.5
    assert loose.median <= loose.p80
    assert loose.rounds < exact.rounds <= 12
    assert loose.each <= loose.rounds <= loose.evals
    assert loose.evals < exact.evals


def test_a_window_of_one_point_costs_a_row_per_step():
    """Rounds and evaluations are of one sample, not of the batch."""
    case = replace(SMALL, window_size=1)
    line = measure(case, "picard", 0.1, *references(case))
    assert line.rounds == line.each == line.evals == 12


def test_lines_count_far_samples_against_the_truth_of_their_seed():
    truth, others = references(SMALL)
    moved = [truth[0].clone(), truth[1]]
    moved[0][1] += 1.0
    line = measure(SMALL, "picard", 0.0, moved, others)
    assert line.far == pytest.approx(1 / 6)
    assert line.rms == pytest.approx(math.sqrt(1 / 6))
    assert line.median <= 1e-12
    assert line.energy == pytest.approx(energy_distance(torch.cat(truth), others))


@pytest.mark.parametrize(
    "name",
    ["digits 0.1", "digits 0.3", "mixture 2", "mixture 32", "mixture 1024", "checkpoint", "unet"],
)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_every_problem(name, eta):
    """Sequential = parallel at tolerance 0, in the precision of its model."""
    problem = make(name, 4, eta)
    result = problem.parallel(METHODS["gaussian"], 4, 0.0, 2, seed=0)
    error = (result.samples - problem.sequential(2, seed=0)).abs().max()
    assert error <= (1e-11 if problem.dtype == torch.float64 else 1e-4)
    assert result.samples.isfinite().all()


def test_energy_distance():
    """0 for equal laws, 2 |m| - ... for far ones: point masses at 0 and 3 are 6 apart."""
    a, b = torch.zeros(5, 2), torch.zeros(4, 2)
    b[:, 0] = 3.0
    assert energy_distance(a, b) == pytest.approx(6.0)
    x = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    assert abs(energy_distance(x[:300], x[300:])) < 0.03
    assert energy_distance(x[:300], x[300:] + 1.0) > 0.3


@pytest.mark.parametrize(("eta", "window_size"), [(0.0, 10), (0.0, 4), (1.0, 10), (1.0, 3)])
def test_our_paradigms_is_diffusers(eta, window_size):
    """diffusers' steps in the published loop: the same rounds, evaluations and samples."""
    pytest.importorskip("diffusers")
    from round_peers import paradigms

    problem = make("digits 0.1", 20, eta)
    arguments = (window_size, 0.1, 3, 0)
    ours = problem.parallel(METHODS["ParaDiGMS"], *arguments)
    samples, rounds, evaluations = paradigms(problem, eta, *arguments)
    assert rounds == ours.stats.rounds
    assert evaluations == ours.stats.evaluations
    assert (samples - ours.samples).abs().max() <= 1e-5


@pytest.mark.parametrize("title", IDEAS)
def test_ideas_are_exact_at_tolerance_0(title):
    for eta in (0.0, 1.0):
        problem = make("mixture 2", 12, eta)
        cost = run_idea(problem, IDEAS[title], 5, 0.0, 3, seed=0)
        assert (cost.samples - problem.sequential(3, seed=0)).abs().max() <= 1e-9
        assert (cost.rounds <= 12).all()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_picard_of_the_ideas_is_the_samplers(eta):
    """Sample by sample the same rounds and evaluations, so that the ideas are compared with it."""
    problem = make("digits 0.1", 40, eta)
    cost = run_idea(problem, Idea(), 15, 0.1, 4, seed=0)
    ours = problem.parallel(METHODS["picard"], 15, 0.1, 4, seed=0)
    assert cost.rounds.tolist() == ours.stats.rounds_per_sample.tolist()
    assert cost.evaluations.tolist() == ours.stats.evaluations_per_sample.tolist()
    assert (cost.samples - ours.samples).abs().max() <= 1e-9


def test_newton_and_secant_need_fewer_rounds():
    """On a smooth problem; of one component, where x0 is linear, Newton needs one pass."""
    problem = make("mixture 2", 40, 0.0)
    rounds = {u: run_idea(problem, Idea(u), 40, 0.01, 8, 0).rounds for u in UPDATES}
    mean = {update: float(r.double().mean()) for update, r in rounds.items()}
    assert mean["newton"] < mean["secant"] < mean["picard"]
    assert mean["newton"] < mean["eigen"] < mean["picard"]


def test_two_evaluations_give_the_secant_a_gaussians_slope():
    """Rounds: one point, the guess, its correction (pairs), the whole path, unchanged, the end."""
    table = make("mixture 2", 20, 0.0).table
    means = torch.tensor([[0.7, -0.2]], dtype=torch.float64)
    problem = Problem(MixtureModel(table, means, 0.3), table, (2,))
    rounds = {u: run_idea(problem, Idea(u), 20, 1e-6, 3, 0).rounds.max() for u in UPDATES}
    assert rounds["newton"] <= 4
    assert rounds["secant"] <= 6
    assert rounds["picard"] > 6


def test_the_prior_guess_is_the_path_of_its_data():
    """One round finds nothing to change but rounding, the next one ends at the last point."""
    table = make("mixture 2", 20, 1.0).table
    problem = Problem(MixtureModel(table, torch.zeros(1, 2).double(), 0.8), table, (2,))
    guesses = {"prior": Idea(guess="prior", prior=0.8), "zero": Idea(guess="zero")}
    rounds = {g: run_idea(problem, i, 20, 1e-6, 3, 0).rounds.max() for g, i in guesses.items()}
    assert rounds["prior"] <= 2
    assert rounds["zero"] > 4


def test_first_evaluations_in_a_row_are_rounds_of_one_row():
    problem = make("mixture 2", 20, 0.0)
    cost = run_idea(problem, Idea(first=20), 20, 0.1, 2, 0)
    assert cost.rounds.tolist() == cost.evaluations.tolist() == [20, 20]
    assert run_idea(problem, Idea(first=5), 20, 0.1, 2, 0).rounds.min() > 5


def test_the_prior_path_is_the_samplers_first_guess():
    """Of data N(0, I) it is the answer: nothing changes."""
    table = make("mixture 2", 20, 1.0).table
    problem = Problem(MixtureModel(table, torch.zeros(1, 2).double(), 1.0), table, (2,))
    rounds = {
        name: problem.parallel(METHODS[name], 20, 1e-6, 3, 0).stats.rounds
        for name in ("secant, prior", "secant, zero")
    }
    assert rounds["secant, prior"] == 1
    assert rounds["secant, zero"] >= 3
