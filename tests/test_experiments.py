"""Experiments: runs that resume, budgets that are fair, reports, and the command."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from ctd_engine import (
    ContrastiveDiffusionLoss,
    DenoisingLoss,
    ParallelSampler,
    schedules,
)
from ctd_engine.cli import main
from ctd_engine.experiments import evaluate, runner, train
from ctd_engine.experiments.losses import make_loss
from ctd_engine.experiments.problems import make_problem
from ctd_engine.experiments.settings import EXPERIMENTS, LossSettings, get_experiment
from ctd_engine.experiments.shapes import SHAPES
from ctd_engine.logsnr_distributions import TruncatedLogistic, Uniform, alpha_from_data
from experiment_problem import tiny


@pytest.fixture(autouse=True)
def cost_without_a_clock(monkeypatch):
    """Time differs from run to run: twice that of plain denoising here."""
    monkeypatch.setattr(runner, "relative_cost", lambda *arguments: 2.0)


def stripped(result):
    """A result without the processor time that it took."""
    result = json.loads(json.dumps(result))
    for snapshot in result["budgets"].values():
        assert snapshot.pop("cpu_time_s") > 0
    return result


def test_losses_are_made_from_their_settings():
    schedule = schedules.linear_beta()
    data = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    plain = make_loss(LossSettings("a", levels=(-3.0, 3.0)), schedule, data)
    assert isinstance(plain, DenoisingLoss)
    assert plain.levels == Uniform(-3.0, 3.0)
    settings = LossSettings(
        "b", contrastive_weight=0.3, common_random_numbers=False, num_points=7, num_draws=3,
        temperature=2.0, zeta=(-1.0, 4.0), alpha=(1.0, 2.0, 1.5),
    )  # fmt: skip
    loss = make_loss(settings, schedule, data)
    assert isinstance(loss, ContrastiveDiffusionLoss)
    assert (loss.contrastive_weight, loss.num_points, loss.num_draws) == (0.3, 7, 3)
    assert loss.temperature == 2.0
    assert not loss.common_random_numbers
    assert loss.zeta == Uniform(-1.0, 4.0)
    assert loss.alpha == TruncatedLogistic(1.0, 2.0, 1.5).truncated(*schedule.logsnr_range)
    fitted = make_loss(replace(settings, alpha=None, zeta=None), schedule, data)
    assert fitted.alpha == alpha_from_data(data).truncated(*schedule.logsnr_range)
    assert fitted.zeta == ContrastiveDiffusionLoss(schedule).zeta


def test_the_three_losses_of_every_experiment():
    for name in ("1d", "shapes", "digits"):
        plain, independent, common = EXPERIMENTS[name].losses
        assert plain.contrastive_weight is None
        assert not independent.common_random_numbers
        assert common.common_random_numbers
    for experiment in EXPERIMENTS.values():
        assert experiment.losses[0].contrastive_weight is None
        names = [loss.name for loss in experiment.losses]
        assert len(set(names)) == len(names)


def test_relative_cost_counts_the_rows():
    experiment = tiny("shapes")
    problem = make_problem("moons", experiment, 0)
    many = LossSettings("many", contrastive_weight=0.1, num_points=20, num_draws=64)
    assert train.relative_cost(problem, experiment, many) > 1.5
    assert 0.6 < train.relative_cost(problem, experiment, LossSettings("plain")) < 1.6


def test_snapshots_are_of_their_steps():
    experiment = tiny("shapes")
    problem = make_problem("moons", experiment, 0)
    loss = experiment.losses[2]
    both = train.train(problem, experiment, loss, 0, [5, 2])
    assert list(both) == [2, 5]
    assert both[2].cpu_time_s < both[5].cpu_time_s
    alone = train.train(problem, experiment, loss, 0, [2])
    for a, b in zip(both[2].model.parameters(), alone[2].model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(both[2].model.parameters(), both[5].model.parameters(), strict=True)
    )


def test_shapes_get_their_frequencies():
    experiment = tiny("shapes")
    problem = make_problem("moons", experiment, 0)
    model = train.train(problem, experiment, experiment.losses[0], 0, [1])[1].model
    assert len(model.frequencies) == experiment.num_frequencies == 3


def test_interrupted_experiment_goes_on_to_the_same_result(tmp_path, monkeypatch):
    experiment = replace(tiny("shapes"), problems=("moons",))
    whole = runner.run_experiment(experiment, tmp_path / "whole", 2, progress=False)
    assert len(whole) == 6
    assert {result["budgets"]["time"]["steps"] for result in whole} == {2, 4}

    calls = 0

    def third_is_interrupted(*arguments):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return train.train(*arguments)

    monkeypatch.setattr(runner, "train", third_is_interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run_experiment(experiment, tmp_path / "parts", 2, progress=False)
    finished = sorted((tmp_path / "parts" / "runs").glob("moons*.json"))
    assert len(finished) == 2
    assert not list((tmp_path / "parts" / "runs").glob(".*"))
    before = [path.read_bytes() for path in finished]
    parts = runner.run_experiment(experiment, tmp_path / "parts", 2, progress=False)
    assert calls == 3 + 4
    assert [path.read_bytes() for path in finished] == before
    assert [stripped(result) for result in parts] == [stripped(result) for result in whole]
    # nothing is left to do
    monkeypatch.setattr(runner, "train", None)
    again = runner.run_experiment(experiment, tmp_path / "parts", 2, progress=False)
    assert again == parts


def test_refuses_to_mix_settings(tmp_path, monkeypatch):
    experiment = replace(tiny("1d"), losses=EXPERIMENTS["1d"].losses[:1])
    runner.run_experiment(experiment, tmp_path, 1, progress=False)
    monkeypatch.setattr(runner, "train", None)
    with pytest.raises(ValueError, match=r"other settings: steps is 4, this command asks for 5"):
        runner.run_experiment(replace(experiment, steps=5), tmp_path, 1, progress=False)
    changed = replace(experiment.losses[0], levels=(-3.0, 3.0))
    with pytest.raises(ValueError, match=r"settings: loss is .*; choose another --out"):
        runner.run_experiment(replace(experiment, losses=(changed,)), tmp_path, 1, progress=False)
    path = tmp_path / "runs" / "two_gaussians-denoising-0.json"
    path.write_text("[1]")
    with pytest.raises(ValueError, match="is not the result of a run"):
        runner.run_experiment(experiment, tmp_path, 1, progress=False)
    with pytest.raises(ValueError, match="seeds must be an integer >= 1"):
        runner.run_experiment(experiment, tmp_path, 0, progress=False)


def test_a_changed_cost_is_measured_again(tmp_path, monkeypatch):
    experiment = replace(tiny("shapes"), problems=("moons",), losses=EXPERIMENTS["1d"].losses[2:])
    runner.run_experiment(experiment, tmp_path, 1, progress=False)
    monkeypatch.setattr(runner, "relative_cost", lambda *arguments: 4.0)
    [kept] = (tmp_path / "runs").glob("moons*.json")
    kept.unlink()
    assert runner.run_experiment(experiment, tmp_path, 1, progress=False)[0]["cost"] == 2.0
    kept.unlink()
    longer = replace(experiment, steps=8)
    [result] = runner.run_experiment(longer, tmp_path, 1, progress=False)
    assert result["cost"] == 4.0
    assert result["budgets"]["time"]["steps"] == 2


def test_all_losses_get_the_same_noise_and_parallel_agrees():
    experiment = tiny("shapes")
    problem = make_problem("moons", experiment, 0)
    model = train.train(problem, experiment, experiment.losses[0], 0, [4])[4].model
    sequential, parallel = experiment.samplers[:2]
    exact = replace(parallel, tolerance=0.0)
    first = evaluate.draw(model, problem, sequential, 0)
    assert first.rounds == first.evaluations == 12
    assert first.num_failed == 0
    other = evaluate.draw(model, problem, exact, 0)
    assert torch.allclose(first.samples, other.samples, atol=1e-5)
    assert other.rounds <= 12 < other.evaluations
    # other batches change nothing
    evaluate_rows, evaluate._ROWS = evaluate._ROWS, 4
    try:
        parts = evaluate.draw(model, problem, sequential, 0)
    finally:
        evaluate._ROWS = evaluate_rows
    assert torch.allclose(first.samples, parts.samples, atol=1e-6)
    assert not torch.equal(first.samples, evaluate.draw(model, problem, sequential, 1).samples)


def test_lockstep_is_the_published_sampler(monkeypatch):
    experiment = tiny("shapes")
    problem = make_problem("moons", experiment, 0)
    told = []

    def make(*arguments, **options):
        told.append(options)
        return ParallelSampler(*arguments, **options)

    monkeypatch.setattr(evaluate, "ParallelSampler", make)
    for lockstep in (False, True):
        settings = replace(experiment.samplers[1], lockstep=lockstep)
        evaluate.draw(lambda x, t: torch.zeros_like(x), problem, settings, 0)
    assert [(o["lockstep"], o["guess"]) for o in told] == [(False, "predicted"), (True, "copy")]


def test_digits_true_samples_and_statistics():
    problem = make_problem("digits", tiny("digits"), 0)
    assert len(problem.data.x) == 1200
    floor = problem.floor(200)
    assert floor["accuracy"]["mean"] > 0.9
    assert abs(floor["energy_distance"]["mean"]) < 0.05
    wrong = problem.metrics(problem.data.x[:200], (problem.data.labels[:200] + 1) % 10)
    assert wrong["accuracy"] < 0.1
    assert problem.metrics(torch.zeros(20, 1, 8, 8), torch.zeros(20))["energy_distance"] > 1.0


def test_unknown_problem():
    with pytest.raises(ValueError, match="problem must be one of two_gaussians, spirals"):
        make_problem("torus", tiny("1d"), 0)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_command(name, tmp_path, monkeypatch):
    experiment = tiny(name)
    problems = tuple(p for p in experiment.problems if p in ("moons", *SHAPES))[:2]
    small = replace(experiment, problems=problems or experiment.problems)
    monkeypatch.setitem(EXPERIMENTS, name, small)
    arguments = ["experiment", name, "--out", str(tmp_path / "out"), "--quick", "--seeds", "2"]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["seeds"] == [0, 1]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    count = len(small.problems) * len(small.losses) * 2 * len(small.samplers)
    assert len(report["values"]) == count
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {"quality.png", "error_map.png" if name == "1d" else "samples.png"}
    second = CliRunner().invoke(main, arguments)
    assert second.exit_code == 0, second.output
    assert "wrote" in second.stdout
    assert "## Squared MMD, ddpm" in second.stdout
    changed = CliRunner().invoke(main, [*arguments, "--steps", "7"])
    assert changed.exit_code == 2
    assert "steps is 1, this command asks for 7" in changed.stderr
    assert len(changed.stderr.strip().splitlines()) == 1


def test_command_errors(tmp_path, monkeypatch):
    def run(*arguments):
        return CliRunner().invoke(main, ["experiment", *map(str, arguments)])

    assert "--json" in run("--help").stdout
    assert "'torus' is not one of" in run("torus", "--out", tmp_path).stderr
    assert "steps must be an integer >= 1" in run("1d", "--out", tmp_path, "--steps", 0).stderr
    assert "seeds must be an integer >= 1" in run("1d", "--out", tmp_path, "--seeds", 0).stderr

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ctd_engine.cli.experiment.run_experiment", interrupt)
    stopped = run("1d", "--out", tmp_path)
    assert stopped.exit_code == 130
    assert "the same command goes on" in stopped.stderr


def test_quick_is_smaller():
    for name in EXPERIMENTS:
        whole, quick = get_experiment(name), get_experiment(name, quick=True)
        assert quick.steps * 10 == whole.steps
        assert quick.samplers[0].num_samples * 10 == whole.samplers[0].num_samples
        assert quick.samplers[0].num_steps == 250
        assert get_experiment(name, quick=True, steps=17).steps == 17
    with pytest.raises(ValueError, match="experiment must be one of"):
        get_experiment("torus")
