"""Errors of the points of a run: those of its own rounds, and what is drawn of them."""

from __future__ import annotations

import re

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from ctd_engine import ParallelSampler, SequentialSampler, exact, plots, schedules, solvers
from ctd_engine.cli import main
from ctd_engine.round_errors import RoundErrors

NUM_STEPS = 20
OPTIONS = {"shape": (2,), "solver": solvers.ddpm(schedules.linear_beta(), NUM_STEPS)}
MODEL = exact.MixtureModel(OPTIONS["solver"], torch.eye(2).double(), std=0.2)
OPTIONS["dtype"] = torch.float64


def measured(tolerance, window_size=6):
    """Errors of a run of three samples, the run, and the sequential trajectory."""
    truth = SequentialSampler(MODEL, **OPTIONS).sample(3, seed=1, keep_trajectory=True).trajectory
    watcher = RoundErrors(truth)
    sampler = ParallelSampler(MODEL, **OPTIONS, window_size=window_size, tolerance=tolerance)
    result = sampler.sample(3, seed=1, callback=watcher, keep_trajectory=True)
    return watcher.errors(), result, truth


def test_what_is_final_is_exact_and_what_is_ahead_is_unknown():
    errors, result, _ = measured(tolerance=0.0)
    history = result.stats.window_history
    assert errors.shape == (len(history), 3, NUM_STEPS + 1)
    inside = []
    for values, record in zip(errors, history, strict=True):
        for sample, start, length in zip(record.sample, record.start, record.length, strict=True):
            # the step from a final point is the solver's own
            assert values[sample, : start + 2].max() <= 1e-12
            assert values[sample, start + length + 1 :].isnan().all()
            inside.append(values[sample, start + 2 : start + length + 1])
    # and between them there are errors that a picture can show
    assert torch.cat(inside).isfinite().all()
    assert torch.cat(inside).max() > 1e-4


def test_the_last_round_has_the_errors_of_the_result():
    errors, result, truth = measured(tolerance=0.3)
    expected = (result.trajectory - truth).square().mean(2).sqrt()
    torch.testing.assert_close(errors[-1], expected, rtol=0, atol=1e-15)
    assert errors[-1].max() > 1e-6


def test_the_picture_has_the_errors_and_the_windows(monkeypatch, tmp_path):
    errors, result, _ = measured(tolerance=0.1)
    history = result.stats.window_history
    figures = []
    pyplot = plots._pyplot()
    with monkeypatch.context() as patch:
        patch.setattr(pyplot, "close", figures.append)
        plots.save_round_errors(tmp_path / "map.png", errors[:, :2], history)
    pyplot.close(figures[0])
    panels = figures[0].axes[:2]
    for sample, axis in enumerate(panels):
        drawn = torch.from_numpy(axis.collections[0].get_array().filled(torch.nan))
        expected = errors[:, sample].clamp_min(1e-5 * float(errors[:, :2].nan_to_num().max()))
        torch.testing.assert_close(drawn, expected, equal_nan=True)
        begins, ends = ({tuple(p) for p in line.get_xydata()} for line in axis.lines)
        for number, record in enumerate(history, 1):
            for (entry,) in [e for e in (record.sample == sample).nonzero() if len(e)]:
                begin = record.start[entry] + 0.5
                assert (begin, number - 0.5) in begins
                assert (begin + record.length[entry], number + 0.5) in ends
    assert panels[0].yaxis_inverted()


def test_rejects():
    errors, result, truth = measured(tolerance=0.3)
    sampler = ParallelSampler(MODEL, **OPTIONS, window_size=4)
    watcher = RoundErrors(truth)
    with pytest.raises(ValueError, match=r"of a parallel run: sample\(keep_trajectory=True\)"):
        sampler.sample(3, seed=0, callback=watcher)
    expected = "trajectory must be (2, 21, 2) as this run's is, got (3, 21, 2)"
    with pytest.raises(ValueError, match=re.escape(expected)):
        sampler.sample(2, seed=0, callback=watcher, keep_trajectory=True)
    with pytest.raises(ValueError, match="a round at the least, got none"):
        watcher.errors()
    with pytest.raises(ValueError, match=re.escape("*shape], got (3, 2);")):
        RoundErrors(truth[:, 0])
    history = result.stats.window_history
    with pytest.raises(ValueError, match=f"all {len(history)} rounds, got {len(history) - 1}"):
        plots.save_round_errors("unused.png", errors[1:], history)
    with pytest.raises(ValueError, match="finite one above 0, got none"):
        plots.save_round_errors("unused.png", 0 * errors, history)


def command(tmp_path, *arguments):
    short = ("--out", tmp_path / "d.png", "--num-samples", 2, "--num-steps", 12)
    values = ("sample", "ctd_engine/assets/digits.safetensors", *short, "--window-size", 8)
    return CliRunner().invoke(main, [str(value) for value in (*values, *arguments)])


def test_command(tmp_path, monkeypatch, request):
    """Together with the animation, whose callback goes on."""
    monkeypatch.chdir(request.config.rootpath)
    picture, animation = tmp_path / "map.png", tmp_path / "d.gif"
    result = command(tmp_path, "--error-map", picture, "--animate", animation)
    assert result.exit_code == 0, result.output
    assert f"{picture}: the error of every point after every round" in result.output
    with Image.open(picture) as image:
        assert image.width > 600
    assert animation.stat().st_size > 1000
    refused = command(tmp_path, "--error-map", tmp_path / "map.gif")
    assert refused.exit_code == 2
    assert "--error-map must end in .png, got" in refused.stderr
