"""`torchrun -m ctd_engine sample`, and the script of docs/scaling.md, do what one process does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ctd_engine import ParallelSampler
from ctd_engine.cli import main
from ctd_engine.demo import demo_checkpoint

pytestmark = pytest.mark.slow

LIMIT_S = 150


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Two ranks on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torchrun")
    rows = np.random.default_rng(0).normal(5.0, 2.0, (50, 2))
    np.savetxt(folder / "points.csv", rows, delimiter=",")
    out = folder / "model.safetensors"
    result = CliRunner().invoke(
        main,
        ["train", "--data", f"{folder}/points.csv", "--out", str(out), "--steps", "3",
         "--batch-size", "16", "--width", "8"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return out


def test_two_ranks_write_what_one_process_writes(checkpoint, tmp_path):
    arguments = [checkpoint, "--num-samples", 3, "--num-steps", 60, "--window-size", 8, "--json"]
    one, two = tmp_path / "one.npy", tmp_path / "two.npy"
    result = CliRunner().invoke(main, ["sample", *map(str, arguments), "--out", str(one)])
    assert result.exit_code == 0, result.output
    done = torchrun("-m", "ctd_engine", "sample", *arguments, "--out", two, "--split", "rows")
    assert done.returncode == 0, done.stderr
    # one object: the other rank is silent
    told = json.loads(done.stdout)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "one.json",
        "one.npy",
        "two.json",
        "two.npy",
    ]
    expected = json.loads(result.stdout)
    for name in ("rounds", "evaluations", "rounds_per_sample", "stop_reasons", "seeds"):
        assert told[name] == expected[name]
    # float32: a batch of other size rounds differently
    np.testing.assert_allclose(np.load(two), np.load(one), rtol=1e-6)


def test_sequential_is_refused_on_many_ranks(checkpoint, tmp_path):
    done = torchrun(
        "-m", "ctd_engine", "sample", checkpoint, "--out", tmp_path / "no.npy", "--sequential"
    )
    assert done.returncode != 0
    assert "Error: --sequential runs in one process" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_script_of_the_documentation(tmp_path, request):
    text = (request.config.rootpath / "docs" / "scaling.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    script = tmp_path / "script.py"
    script.write_text(block, encoding="utf-8")
    done = torchrun(script)
    assert done.returncode == 0, done.stderr
    # rank 0 alone prints
    ((rounds, checksum),) = re.findall(r"(\d+) rounds, checksum (\S+)", done.stdout)
    digits = demo_checkpoint()
    alone = ParallelSampler(
        digits.model,
        shape=digits.shape,
        schedule=digits.schedule,
        prediction=digits.prediction,
        num_steps=100,
        window_size=16,
    ).sample(1, seed=0, cond={"label": torch.tensor([4])})
    assert int(rounds) == alone.stats.rounds < 50
    assert float(checksum) == pytest.approx(float(alone.samples.sum()), abs=1e-3)
