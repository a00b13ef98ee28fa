"""The command line: every command runs, prints JSON on request, and fails in one clear line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from ctd_engine.cli import main
from ctd_engine.training.checkpoint import read_checkpoint


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def failure(*arguments):
    """The one line of a refused command; exit code 2."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    folder = tmp_path_factory.mktemp("points")
    rows = np.random.default_rng(0).normal(5.0, 2.0, (50, 2))
    np.savetxt(folder / "points.csv", rows, delimiter=",")
    result = run(
        "train", "--data", folder / "points.csv", "--out", folder / "model.safetensors",
        "--steps", 3, "--batch-size", 16, "--width", 8, "--loss", "contrastive", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    out = tmp_path_factory.mktemp("digits") / "model.safetensors"
    result = run(
        "train", "--data", "digits", "--out", out, "--steps", 2, "--width", 8,
        "--batch-size", 8, "--export", out.with_name("small.safetensors"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("command", ["train", "sample", "demo", "info", "bench"])
def test_every_command_has_help_and_json(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.output
    assert command in run("--help").output


def test_info():
    values = json.loads(run("info", "--json").output)
    assert values["versions"]["torch"] == torch.__version__
    for state in values["backends"].values():
        assert state["active"] == (state["reason"] is None)
    for language in ("CUDA", "C++", "Python"):
        assert f"window scheduler in {language}" in run("info").output
    for language in ("C++", "Triton"):
        assert f"{language} kernels" in run("info").output


def test_train_points(points):
    assert not list(points.glob(".*"))
    _, config = read_checkpoint(points / "model.safetensors")
    assert config["train"]["loss"] == "contrastive"
    assert config["step"] == 3


def test_train_does_not_overwrite(points):
    out = points / "model.safetensors"
    before = out.read_bytes()
    arguments = ("train", "--data", points / "points.csv", "--out", out, "--steps", 1)
    assert "use --resume to go on or --overwrite" in failure(*arguments)
    assert "not both" in failure(*arguments, "--resume", "--overwrite")
    assert "which is not there" in failure(
        "train", "--data", "none.csv", "--out", points / "b.safetensors"
    )
    assert "is not there; make it first" in failure(
        "train", "--data", "digits", "--out", points / "no" / "b.safetensors"
    )
    assert "steps must be an integer >= 1" in failure(
        "train", "--data", "digits", "--out", points / "b.safetensors", "--steps", 0
    )
    assert out.read_bytes() == before
    assert not (points / "b.safetensors").exists()


def test_resume_of_a_finished_run(points):
    result = run(
        "train", "--data", points / "points.csv", "--out", points / "model.safetensors",
        "--resume", "--json",
    )  # fmt: skip
    assert json.loads(result.output)["step"] == 3


@pytest.mark.parametrize("extra", [(), ("--sequential",), ("--label", 3, "--guidance", 2.0)])
def test_sample_images(digits, tmp_path, extra):
    out = tmp_path / "digits.png"
    result = run(
        "sample", digits, "--out", out, "--num-samples", 5, "--num-steps", 20, "--json", *extra
    )
    assert result.exit_code == 0, result.output
    values = json.loads(result.output)
    assert values == json.loads(out.with_suffix(".json").read_text())
    assert values["num_samples"] == len(values["seeds"]) == 5
    assert set(values["stop_reasons"]) == {"CONVERGED"}
    with Image.open(out) as picture:
        assert min(picture.size) >= 8


def test_sample_of_an_export(digits, tmp_path):
    small = digits.with_name("small.safetensors")
    assert small.stat().st_size < digits.stat().st_size / 2
    result = run("sample", small, "--out", tmp_path / "x.npy", "--num-steps", 5, "--num-samples", 2)
    assert result.exit_code == 0, result.output
    assert np.load(tmp_path / "x.npy").shape == (2, 1, 8, 8)


def test_sample_points_in_their_own_units(points, tmp_path):
    result = run(
        "sample", points / "model.safetensors", "--out", tmp_path / "p.npy",
        "--solver", "dpmpp_2m", "--num-steps", 10, "--num-samples", 200, "--window-size", 4,
        "--clip",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    samples = np.load(tmp_path / "p.npy")
    assert samples.shape == (200, 2)
    # x0 is clipped to one standard deviation of the data around its mean
    data = read_checkpoint(points / "model.safetensors")[1]["data"]
    assert 3.0 < data["offset"] < 7.0
    reach = np.abs(samples - data["offset"]).max()
    assert reach == pytest.approx(data["scale"], rel=1e-3)
    picture = tmp_path / "p.png"
    run("sample", points / "model.safetensors", "--out", picture, "--num-steps", 5)
    assert picture.stat().st_size > 0


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (("--out", "x.jpg"), "--out must end in .png or .npy"),
        (("--label", 11), "--label must be in"),
        (("--num-steps", 0), "num_steps must be an integer >= 1"),
        (("--window-size", "big"), 'window_size must be "auto"'),
        (("--tolerance", -1), "tolerance must be >= 0"),
        (("--solver", "magic"), "solver must be one of"),
        (("--seed", -1), "seed must be in"),
        (("--num-samples", 0), "num_samples must be an integer >= 1"),
    ],
    ids=str,
)
def test_sample_rejects(digits, tmp_path, monkeypatch, extra, match):
    monkeypatch.chdir(tmp_path)
    assert match in failure("sample", digits, *extra)
    assert list(tmp_path.iterdir()) == []


def test_sample_rejects_checkpoints(points, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((points / "model.safetensors").read_bytes()[:200])
    assert "cannot be read" in failure("sample", broken)
    assert "is not there" in failure("sample", tmp_path / "none.safetensors")
    assert "need a model trained with labels" in failure(
        "sample", points / "model.safetensors", "--label", 1
    )
    assert list(tmp_path.iterdir()) == [broken]


def test_demo(tmp_path):
    """A short run of the real demo: committed model, both samplers, both pictures."""
    result = run("demo", "--out", tmp_path, "--num-samples", 4, "--num-steps", 100, "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.output)
    assert values["agrees"]
    assert values["worst_difference"] <= values["limit"]
    sequential, parallel = values["costs"]
    assert parallel["rounds"] < sequential["rounds"] == 100
    for picture in values["pictures"]:
        with Image.open(picture) as image:
            assert min(image.size) > 200


def test_demo_fails_when_the_samples_do_not_agree(tmp_path, monkeypatch):
    monkeypatch.setattr("ctd_engine.demo.TOLERANCE", 100.0)
    monkeypatch.setattr("ctd_engine.demo.AGREEMENT", 1e-6)
    result = run("demo", "--out", tmp_path, "--num-samples", 2, "--num-steps", 50)
    assert result.exit_code == 1
    assert "DO NOT AGREE" in result.output
