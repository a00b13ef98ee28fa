"""Python examples of the README and the documentation run, and links lead somewhere."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(DOCS.glob("**/*.md")),
    *sorted((ROOT / "ctd_engine" / "ops").glob("*/README.md")),
]
# pages whose examples build on one another, and need nothing that is optional
TUTORIALS = ["index", "performance", "engine", "backends", "extending"]


def blocks(page: Path, section: str | None = None) -> list[str]:
    text = page.read_text(encoding="utf-8")
    if section is not None:
        text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run(examples: list[str], folder: Path) -> dict:
    """Their names after all have run; from a file, where Triton finds a kernel's source."""
    assert examples
    script = folder / "example.py"
    script.write_text("\n".join(examples), encoding="utf-8")
    return runpy.run_path(str(script))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in target or (page.parent / target).exists(), target


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r": (\S+\.md)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.glob("**/*.md"))


def test_every_public_module_is_in_the_reference():
    package = ROOT / "ctd_engine"
    folders = [package, package / "integrations", package / "training"]
    modules = [path.stem for folder in folders for path in folder.glob("[!_]*.py")]
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    told = {name.split(".")[-1] for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    # operations have pages of their own (docs/hooks.py); the samplers tell what a denoiser is, the
    # trainer what a configuration is
    assert set(modules) - {"denoiser", "config"} <= told


def test_every_op_has_its_derivation():
    for folder in (ROOT / "ctd_engine" / "ops").glob("*/"):
        assert (folder / "README.md").exists() or folder.name == "__pycache__", folder


def test_no_example_is_left_out():
    with_examples = {page.stem for page in DOCS.glob("**/*.md") if blocks(page)}
    # scaling's needs two processes: tests/test_torchrun.py
    assert with_examples == {*TUTORIALS, "training", "integrations", "scaling"}


def test_readme_example_runs(capsys, tmp_path):
    (block,) = blocks(ROOT / "README.md")
    run([block], tmp_path)
    rounds, difference = re.findall(r"(\d+) rounds|difference: ([\d.]+)", capsys.readouterr().out)
    assert int(rounds[0]) < 60
    assert float(difference[1]) < 0.1


@pytest.mark.parametrize("page", TUTORIALS)
def test_tutorials_run(page, tmp_path):
    """Each asserts what it says."""
    examples = blocks(DOCS / f"{page}.md")
    assert any("assert" in example for example in examples)
    run(examples, tmp_path)


def test_training_example_runs(capsys, tmp_path):
    run(blocks(DOCS / "training.md"), tmp_path)
    told = ast.literal_eval(capsys.readouterr().out)
    assert told.keys() >= {"denoising", "contrastive", "accuracy"}
    assert 0.0 < told["denoising"] < 2.0


@pytest.mark.parametrize("section", ["EDM", "k-diffusion", "diffusers schedulers"])
def test_integration_examples_run(section, tmp_path):
    names = run(blocks(DOCS / "integrations.md", section), tmp_path)
    result = names["x" if section == "k-diffusion" else "images"]
    assert len(result) == 4
    assert bool(result.isfinite().all())
