"""The example scripts run, and leave what they promise."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / script, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_train_diffusers(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("diffusers")
    out = tmp_path / "pipeline"
    tiny = "--data digits --batch-size 16 --channels 8 --samples 3 --inference-steps 2 --steps 3"
    settings = "--prediction-type v_prediction --gradient-accumulation-steps 2"
    done = run("train_diffusers.py", "--out", str(out), *tiny.split(), *settings.split())
    assert done.returncode == 0, done.stderr[-3000:]
    assert "3/3" in done.stderr
    assert "contrastive=" in done.stderr
    weights = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values())
    scheduler = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    index = json.loads((out / "model_index.json").read_text())
    assert index["_class_name"] == "DDPMPipeline"
    assert (out / "samples.png").stat().st_size > 500


def test_train_diffusers_says_when_a_batch_is_more_than_the_data(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("diffusers")
    tiny = "--data digits --batch-size 2000 --channels 8 --steps 1"
    done = run("train_diffusers.py", "--out", str(tmp_path / "pipeline"), *tiny.split())
    assert done.returncode == 1
    assert "--batch-size 2000 in each of 1 processes is more than the 1797 images" in done.stderr


def tell(script: str, *arguments: str) -> str:
    done = run(script, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "\n# %% " in (EXAMPLES / script).read_text(encoding="utf-8")
    return done.stdout


def test_quickstart() -> None:
    told = tell("quickstart.py")
    assert int(re.findall(r"(\d+) rounds", told)[0]) < 50
    assert float(re.findall(r"difference ([\d.]+)", told)[0]) < 0.05


def test_exact_mixture() -> None:
    rows = re.findall(r"^ *([\d.]+) +(\d+) +(\d+) +(\S+)$", tell("exact_mixture.py"), re.MULTILINE)
    tolerances, rounds, _, differences = zip(*rows, strict=True)
    assert tolerances == ("0", "0.01", "0.1")
    assert float(differences[0]) < 1e-9
    assert float(differences[2]) < 0.1
    assert int(rounds[0]) > int(rounds[1]) > int(rounds[2])


def test_train_digits(tmp_path: Path) -> None:
    picture = tmp_path / "digits.png"
    told = tell("train_digits.py", "--steps", "3", "--width", "8", "--out", str(picture))
    assert "step 3: " in told
    assert "denoising" in told
    assert picture.stat().st_size > 500


def test_noise_classifier() -> None:
    told = tell("noise_classifier.py")
    ratios = re.findall(r"(clean|noisy): log ratio +(-?[\d.]+)", told)
    assert len(ratios) == 6
    assert all((float(ratio) > 0) == (kind == "noisy") for kind, ratio in ratios)
    assert "[inf, inf, inf, 2.0, 2.0, 2.0]" in told


def test_warm_start() -> None:
    told = tell("warm_start.py")
    cold, warm = map(int, re.findall(r"(\d+) rounds", told))
    assert warm < cold
    assert float(re.findall(r"difference: ([\d.]+)", told)[0]) < 0.05


def test_diffusers_parallel() -> None:
    pytest.importorskip("diffusers")
    told = tell("diffusers_parallel.py")
    assert int(re.findall(r"(\d+) rounds instead of 50", told)[0]) < 50
