"""The animation: a frame per round, in which only what is final is green."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageSequence

from ctd_engine import ParallelSampler, exact, schedules, solvers
from ctd_engine.animation import FINAL, HEADER, Animation
from ctd_engine.cli import main

NUM_STEPS = 24


def animated(shape, path, num_samples=3):
    """A run with its animation, and the green share of the first sample's cells in every frame."""
    table = solvers.ddpm(schedules.linear_beta(), NUM_STEPS)
    means = torch.eye(4, torch.Size(shape).numel())
    model = exact.MixtureModel(table, means, std=0.1)

    def answer(x, t):
        return model(x.flatten(1), t).view_as(x)

    sampler = ParallelSampler(answer, shape=shape, solver=table, window_size=NUM_STEPS)
    animation = Animation(NUM_STEPS)
    final = []

    def callback(progress):
        animation(progress)
        final.append(progress.points.num_final.copy())

    result = sampler.sample(num_samples, seed=0, callback=callback, keep_trajectory=True)
    animation.save(path)
    with Image.open(path) as picture:
        frames = [np.array(f.convert("RGB")) for f in ImageSequence.Iterator(picture)]
    return result, frames, final


def green(frame):
    # a palette of 64 colours moves them a little
    return np.abs(frame.astype(int) - FINAL).sum(-1) < 60


def test_cells_of_images_turn_green_when_they_are_final(tmp_path):
    result, frames, final = animated((1, 3, 3), tmp_path / "a.gif")
    assert len(frames) == result.stats.rounds > 3
    # 12 columns of 4 pixels, enlarged; a cell's left edge is its own or, if green, its neighbour's
    nodes = np.linspace(0, NUM_STEPS - 1, 12).round().astype(int)
    scale = 660 // (12 * 4 + 1)
    for frame, num_final in zip(frames, final, strict=True):
        for sample in range(3):
            row = HEADER + scale * 4 * sample + 2 * scale
            centres = scale // 2 + scale * 4 * np.arange(12)
            seen = green(frame[row, centres])
            # the edge at the right of the last final cell is green too
            count = int((nodes < num_final[sample]).sum())
            assert seen[:count].all()
            assert not seen[count + 1 :].any()


def test_the_last_column_ends_as_the_sample(tmp_path):
    result, frames, _ = animated((1, 3, 3), tmp_path / "a.gif")
    scale = 660 // (12 * 4 + 1)
    left = scale * (4 * 11 + 1) + scale // 2
    for sample in range(3):
        top = HEADER + scale * (4 * sample + 1) + scale // 2
        cell = frames[-1][top::scale, left::scale][:3, :3, 0] / 127.5 - 1.0
        np.testing.assert_allclose(cell, result.samples[sample, 0].clamp(-1, 1), atol=0.1)


def test_paths_of_points(tmp_path):
    result, frames, _ = animated((2,), tmp_path / "a.gif")
    assert len(frames) == result.stats.rounds
    assert green(frames[-1]).sum() > 100
    assert green(frames[0]).sum() < green(frames[-1]).sum()


def test_needs_the_points():
    sampler = ParallelSampler(
        lambda x, t: x, shape=(2,), schedule=schedules.linear_beta(), num_steps=4, window_size=2
    )
    with pytest.raises(ValueError, match=r"sample\(keep_trajectory=True\)"):
        sampler.sample(1, seed=0, callback=Animation(4))
    with pytest.raises(ValueError, match="needs a round at the least, got none"):
        Animation(4).save("unused.gif")


def test_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(RuntimeError, match=r"need Pillow: pip install 'ctd_engine\[demo\]'"):
        Animation(4)


def command(tmp_path, *arguments):
    checkpoint = "ctd_engine/assets/digits.safetensors"
    short = ("--out", tmp_path / "d.png", "--num-samples", 2, "--num-steps", 12)
    values = ("sample", checkpoint, *short, "--window-size", 12, *arguments)
    return CliRunner().invoke(main, [str(value) for value in values])


def test_command(tmp_path, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    path = tmp_path / "d.gif"
    result = command(tmp_path, "--animate", path)
    assert result.exit_code == 0, result.output
    assert f"{path}: the trajectories, round by round" in result.output
    with Image.open(path) as picture:
        assert picture.n_frames > 3


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--animate", "x.png"), "--animate must end in .gif, got x.png"),
        (("--animate", "no/x.gif"), "is not there; make it first"),
        (("--animate", "x.gif", "--sequential"), "leave out --sequential"),
    ],
    ids=str,
)
def test_command_rejects(tmp_path, arguments, match):
    result = command(tmp_path, *arguments)
    assert result.exit_code == 2
    assert match in result.stderr
    assert list(tmp_path.iterdir()) == []
