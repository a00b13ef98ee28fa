"""The README's example runs, and links of the documentation lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "ctd_engine" / "ops").glob("*/README.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def test_readme_example_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    rounds, difference = re.findall(r"(\d+) rounds|difference: ([\d.]+)", capsys.readouterr().out)
    assert int(rounds[0]) < 60
    assert float(difference[1]) < 0.1


def test_training_example_runs(capsys):
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(block, "training.md", "exec"), {})
    told = ast.literal_eval(capsys.readouterr().out)
    assert told.keys() >= {"denoising", "contrastive", "accuracy"}
    assert 0.0 < told["denoising"] < 2.0


def test_every_op_has_its_derivation():
    for folder in (ROOT / "ctd_engine" / "ops").glob("*/"):
        assert (folder / "README.md").exists() or folder.name == "__pycache__", folder


@pytest.mark.parametrize("section", ["EDM", "k-diffusion", "diffusers schedulers"])
def test_integration_examples_run(section):
    text = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    (_, _, rest) = text.partition(f"\n## {section}\n")
    (block,) = re.findall(r"```python\n(.*?)```", rest.partition("\n## ")[0], re.DOTALL)
    names: dict = {}
    exec(compile(block, f"integrations.md, {section}", "exec"), names)
    result = names["x" if section == "k-diffusion" else "images"]
    assert len(result) == 4
    assert bool(result.isfinite().all())
