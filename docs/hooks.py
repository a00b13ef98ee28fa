"""Brings into the site what lies outside docs/: operations, with their derivations, and files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
# links from docs/*.md to files of the checkout that are no pages
OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)\)")


def derivations() -> dict[str, Path]:
    """The README of every operation, by its name."""
    found = sorted((ROOT / "ctd_engine" / "ops").glob("*/README.md"))
    return {readme.parent.name: readme for readme in found}


def on_config(config: Any) -> Any:
    """Every operation has its page in the navigation."""
    pages = [{name: f"ops/{name}.md"} for name in derivations()]
    (section,) = (entry for entry in config.nav if "How it works" in entry)
    section["How it works"].append({"Operations": pages})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Derivations become pages; files of the checkout that a page links to lie beside it."""
    for name, readme in derivations().items():
        text = readme.read_text(encoding="utf-8") + f"\n::: ctd_engine.ops.{name}\n"
        files.append(File.generated(config, f"ops/{name}.md", content=text))
    linked = {
        target
        for page in files.documentation_pages()
        if page.abs_src_path is not None
        for target in OUTSIDE.findall(Path(page.abs_src_path).read_text(encoding="utf-8"))
    }
    for target in sorted(linked):
        content = (ROOT / target).read_bytes()
        files.append(File.generated(config, f"files/{target}", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The same links, to where the files lie in the site."""
    return OUTSIDE.sub(r"](files/\1)", markdown)
