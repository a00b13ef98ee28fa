"""Every command of the README and the documentation runs, shorter than it stands there."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ctd_engine.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = "ctd-engine|curl|make|pip|pytest|python|torchrun"
# options that make a command short
SHORT = {
    "train": ["--steps", "2", "--batch-size", "4", "--width", "8"],
    "sample": ["--num-steps", "12", "--window-size", "8"],
}
# what begins like this is tested there
ELSEWHERE = {
    "ctd-engine bench": "tests/test_benchmarks.py::test_command_writes_and_compares",
    "ctd-engine convert-edm": "tests/test_edm_convert.py::test_the_command",
    "ctd-engine experiment": "tests/test_experiments.py::test_command",
    "ctd-engine serve": "tests/test_serving.py::test_from_request_to_result",
    "curl": "tests/test_serving.py::test_from_request_to_result",
    "python examples/diffusers_parallel.py": "tests/test_examples.py::test_diffusers_parallel",
    "python benchmarks/round_speculative.py": "tests/test_round_speculative.py::test_the_law",
    "torchrun --nproc-per-node 8 script.py": "tests/test_torchrun.py::test_the_script_of",
    "torchrun --nproc-per-node 8 -m ctd_engine": "tests/test_torchrun.py::test_two_ranks",
}
# and this is no test's: it installs things, takes the whole machine, or needs a GPU
BY_HAND = ("make ", "pip install ", "python -m venv ", "torchrun --nproc-per-node 2 benchmarks/")


def commands(page: Path) -> list[str]:
    """Indented lines and code in sentences that begin with a program's name and go on."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"\\\n\s*", "", text)
    indented = re.findall(rf"^    ((?:{PROGRAMS}) .*)$", text, re.MULTILINE)
    # what stands behind two blanks explains
    found = [re.split(r"\s{2,}", line)[0] for line in indented]
    found += re.findall(rf"`((?:{PROGRAMS}) [^`]+)`", text)
    return [" ".join(command.split()) for command in found]


ALL = sorted({command for page in PAGES for command in commands(page)})


def of(program: str) -> list[str]:
    known = (*ELSEWHERE, *BY_HAND)
    return [c for c in ALL if c.startswith(program) and not c.startswith(known)]


def test_each_has_its_place():
    assert len(ALL) > 30
    rest = set(ALL) - {c for p in ("ctd-engine ", "pytest ", "python benchmarks/") for c in of(p)}
    assert all(command.startswith((*ELSEWHERE, *BY_HAND)) for command in rest), rest
    for beginning, place in ELSEWHERE.items():
        assert any(command.startswith(beginning) for command in ALL), beginning
        file, _, name = place.partition("::")
        assert f"\ndef {name}" in (ROOT / file).read_text(encoding="utf-8"), place


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the files that the pages speak of."""
    asset = Path("ctd_engine", "assets", "digits.safetensors")
    (tmp_path / asset).parent.mkdir(parents=True)
    for name in (asset, "digits.safetensors", "model.safetensors"):
        shutil.copy(ROOT / asset, tmp_path / name)
    random = np.random.default_rng(0)
    np.savetxt(tmp_path / "points.csv", random.normal(size=(20, 2)), delimiter=",")
    (tmp_path / "images").mkdir()
    for number in range(8):
        pixels = random.integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", of("ctd-engine "))
def test_ctd_engine(folder, command):
    _, name, *arguments = shlex.split(command)
    runs = [[*arguments, *SHORT.get(name, [])]]
    if name == "train":
        # of an earlier command
        (folder / "digits.safetensors").unlink()
    if "--resume" in arguments:
        runs = [[a for a in runs[0] if a != "--resume"], arguments]
    for each in runs:
        result = CliRunner().invoke(main, [name, *each])
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", of("python benchmarks/"))
def test_scripts(command, monkeypatch, capsys):
    """Where one takes options it only says which; tests of their own have run what it does."""
    _, script, *arguments = shlex.split(re.sub(r"[][]", "", command))
    has_options = "argparse" in (ROOT / script).read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [script, *arguments, *(["--help"] if has_options else [])])
    with pytest.raises(SystemExit, match=r"^0$") if has_options else nullcontext():
        runpy.run_path(str(ROOT / script), run_name="__main__")
    told = capsys.readouterr().out
    assert len(told) > 100
    assert all(word in told for word in arguments if word.startswith("-"))


def test_pytest():
    """One run collects what all of them name."""
    words = {word for command in of("pytest ") for word in shlex.split(command)[1:]}
    files = [word for word in words if word.startswith("benchmarks/")]
    options = sorted(word for word in words if word.startswith("-"))
    assert options == ["--benchmark-full", "--benchmark-only", "-s"]
    # inside a worker of pytest-xdist benchmarks are off: a reader has none around
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *files, *options],
        cwd=ROOT,
        env=plain,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(file in done.stdout for file in files)
