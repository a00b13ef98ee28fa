"""What experiments measure and report: errors against the exact score, means, tables."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from ctd_engine import (
    schedules,
    solvers,
)
from ctd_engine.exact import MixtureModel
from ctd_engine.experiments.markdown import markdown
from ctd_engine.experiments.report import make_report, mean_of
from ctd_engine.experiments.score_errors import AskedErrors, error_map
from ctd_engine.experiments.shapes import two_gaussians
from experiment_problem import tiny


def exact_model(num_steps=1000):
    table = solvers.ddpm(schedules.linear_beta(), num_steps)
    return MixtureModel(table, two_gaussians().means, 1.0)


def test_error_map_of_known_models():
    mixture = two_gaussians()
    exact = exact_model()
    # an offset everywhere, ten times as large off the path between the modes
    found = error_map(lambda x, t: exact(x, t) + 0.25, mixture)
    inner = slice(1, -1)
    assert torch.allclose(found.error[inner], torch.full_like(found.error[inner], 0.25), atol=2e-2)
    summary = found.summary()
    assert summary["on_path"] == pytest.approx(0.25, rel=0.02)
    assert summary["off_path"] == pytest.approx(0.25, rel=0.02)
    between = error_map(
        lambda x, t: exact(x, t) + 2.5 * ((x.abs() < 1) & (t[:, None] < 20)), mixture
    ).summary()
    assert between["off_path"] > 5 * between["on_path"]
    # between the modes there is no path at little noise, and there is at much
    middle = found.points.abs().argmin()
    assert bool(found.is_off_path[-1, middle])
    assert not bool(found.is_off_path[0, middle])


def test_asked_errors_count_what_a_sampler_asks():
    mixture = two_gaussians()
    exact = exact_model()
    asked = AskedErrors(lambda x, t: exact(x, t) + 0.5, mixture)
    generator = torch.Generator().manual_seed(0)
    t = torch.randint(1000, (400,), generator=generator).double()
    level = torch.sigmoid(schedules.linear_beta().logsnrs[t.long()])[:, None]
    noise = torch.randn(400, 1, generator=generator)
    on_path = level.sqrt() * mixture.sample(400, generator) + (1 - level).sqrt() * noise
    out = asked(on_path, t)
    assert torch.allclose(out, exact(on_path, t) + 0.5)
    assert asked.summary()["asked"] == pytest.approx(0.5, rel=1e-3)
    assert asked.summary()["share_off_path"] < 0.02
    # at some levels, the mixture's own density tells
    grid = torch.linspace(-8.0, 8.0, 161, dtype=torch.float64)[:, None]
    for step in (0, 200, 300, 400, 999):
        density = mixture.noised(float(schedules.linear_beta().logsnrs[step])).log_density(grid)
        expected = density < density.max() + math.log(1e-3)
        assert torch.equal(asked._is_off_path(grid, torch.full((161,), step)), expected)
    asked(torch.full((400, 1), 20.0), t)
    assert 0.5 <= asked.summary()["share_off_path"] < 0.51


def test_mean_of():
    assert mean_of([1.0, 2.0, 6.0]).mean == 3.0
    assert mean_of([1.0, 2.0, 6.0]).standard_error == pytest.approx(math.sqrt(7.0 / 3.0))
    assert str(mean_of([0.12345])) == "0.123"
    assert str(mean_of([1.0, 3.0])) == "2 ± 1"


def made(values):
    """Results of two seeds of one problem and two losses, with given statistics."""
    results = []
    for loss, per_seed in values.items():
        for seed, value in enumerate(per_seed):
            sampled = {
                "metrics": {"mmd": value}, "rounds": 7, "evaluations": 9, "num_failed": 0,
                "rms_difference": 0.5,
            }  # fmt: skip
            snapshot = {"steps": 3, "cpu_time_s": 1.0, "samplers": {"ddpm": sampled}}
            settings = {"problem": "moons", "loss": {"name": loss}, "seed": seed}
            budgets = {"steps": snapshot, "time": snapshot}
            results.append({"settings": settings, "cost": 1.5, "budgets": budgets})
    return results


def test_report_and_tables():
    experiment = tiny("shapes")
    experiment = replace(
        experiment, problems=("moons",), losses=experiment.losses[::2],
        samplers=experiment.samplers[:1],
    )  # fmt: skip
    report = make_report(experiment, made({"denoising": [2.0, 4.0], "common": [1.0, 3.0]}))
    json.dumps(report, allow_nan=False)
    assert report["seeds"] == [0, 1]
    found = {(r["loss"], r["budget"]): r["metrics"]["mmd"] for r in report["values"]}
    assert found["denoising", "steps"] == {"mean": 3.0, "standard_error": 1.0, "seeds": [2.0, 4.0]}
    text = markdown(report)
    lines = [line for line in text.splitlines() if line.startswith("| moons")]
    assert "| 3 ± 1 | 2 ± 1 | 2 ± 1 |" in lines[1]
    # seed by seed: (1/2 + 3/4) / 2, and half their difference
    assert "| relative to the first, all |  | 1 | 0.625 ± 0.12 | 0.625 ± 0.12 |" in text
    zero = make_report(experiment, made({"denoising": [0.0, 4.0], "common": [1.0, 3.0]}))
    zero["floors"] = []
    assert "| relative to the first, all |  | 1 |  |  |" in markdown(zero)
    # a ratio of noise says nothing: six true samples get 0 up to some tenths
    noise = make_report(experiment, made({"denoising": [0.01, 0.02], "common": [1.0, 3.0]}))
    assert "relative to the first" not in markdown(noise)
    assert "not far enough from zero" in markdown(noise)
