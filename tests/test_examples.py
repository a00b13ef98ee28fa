"""The example scripts run, and leave what they promise."""

from __future__ import annotations

import json
import os
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
