"""`torchrun -m ctd_engine sample` writes what one process writes, once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ctd_engine.cli import main

pytestmark = pytest.mark.slow

LIMIT_S = 150


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Two ranks on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "ctd_engine", "sample", *map(str, arguments)],
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
    done = torchrun(*arguments, "--out", two, "--split", "rows")
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
    done = torchrun(checkpoint, "--out", tmp_path / "no.npy", "--sequential")
    assert done.returncode != 0
    assert "Error: --sequential runs in one process" in done.stderr
    assert list(tmp_path.iterdir()) == []
