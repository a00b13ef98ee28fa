"""ctd-engine bench"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

import ctd_engine
from ctd_engine._files import write_whole
from ctd_engine.cli._common import emit, json_option, one_line_errors

__all__ = ["bench"]

PACKAGES = ("ctd_engine", "torch", "numpy", "triton", "diffusers")


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--out", type=click.Path(path_type=Path), help="Also write the results as JSON.")
@click.option(
    "--compare",
    type=click.Path(path_type=Path),
    metavar="OLD.json",
    help="A file of --out; shows how many times its median each new one is.",
)
@json_option
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@one_line_errors
def bench(
    out: Path | None, compare: Path | None, as_json: bool, arguments: tuple[str, ...]
) -> None:
    """Run the benchmarks of the checkout; ARGUMENTS go to pytest (such as -k scheduler)."""
    if out is not None and not out.parent.is_dir():
        raise ValueError(f"--out {out}: the folder {out.parent} is not there; make it first")
    old = None if compare is None else _read(compare)
    folder = Path(ctd_engine.__file__).parent.parent / "benchmarks"
    if not folder.is_dir():
        raise RuntimeError(
            f"the benchmarks are part of a checkout and {folder} is not there; clone the project "
            "and install it with `pip install -e .[test]`"
        )
    # a file or a test among the arguments takes the place of the whole folder
    chosen = any(argument.partition("::")[0].endswith(".py") for argument in arguments)
    what = [] if chosen else [str(folder)]
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.json"
        command = [sys.executable, "-m", "pytest", *what, "--benchmark-only", "--benchmark-quiet"]
        # where nothing is chosen, which is told below, pytest-benchmark's warning would be an error
        command += [f"--benchmark-json={report}", "-W", "ignore:Not saving anything", *arguments]
        # what the benchmarks print would break the JSON
        stdout = subprocess.DEVNULL if as_json else None
        done = subprocess.run(command, cwd=folder.parent, check=False, stdout=stdout)
        text = report.read_text(encoding="utf-8") if report.is_file() else ""
    # pytest-benchmark leaves an empty file where nothing was measured
    if not text:
        raise RuntimeError(f"pytest ended with exit code {done.returncode} and measured nothing")
    values = _summary(json.loads(text))
    if out is not None:
        write_whole(out, partial(_write_text, text=json.dumps(values, indent=1)))
    emit(values, _table(values, old), as_json)
    raise SystemExit(done.returncode)


def _summary(report: dict[str, Any]) -> dict[str, Any]:
    machine = report["machine_info"]
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "machine": {
            "cpu": machine["cpu"].get("brand_raw", machine["machine"]),
            "cores": machine["cpu"].get("count"),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "system": f"{machine['system']} {machine['release']}",
        },
        "versions": {"python": platform.python_version(), **versions},
        "commit": report["commit_info"].get("id"),
        "uncommitted_changes": report["commit_info"].get("dirty"),
        "benchmarks": {
            entry["fullname"]: {
                "median_s": entry["stats"]["median"],
                "iqr_s": entry["stats"]["iqr"],
                "runs": entry["stats"]["rounds"],
                **entry["extra_info"],
            }
            for entry in report["benchmarks"]
        },
    }


def _read(path: Path) -> dict[str, float]:
    """Medians in seconds by benchmark, of a file that --out wrote."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
        return {name: float(entry["median_s"]) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--compare {path} must be a file that `ctd-engine bench --out` wrote: {error}"
        ) from error


def _table(values: dict[str, Any], old: dict[str, float] | None) -> str:
    machine, entries = values["machine"], values["benchmarks"]
    names = {name: name.removeprefix("benchmarks/") for name in entries}
    width = max(map(len, names.values()), default=0)
    title = f"{'benchmark':<{width}}{'median':>14}{'runs':>6}"
    lines = ["", title + ("" if old is None else f"{'new / old':>11}")]
    for name, entry in entries.items():
        line = f"{names[name]:<{width}}{1e3 * entry['median_s']:>11.3f} ms{entry['runs']:>6}"
        if old is not None:
            line += f"{entry['median_s'] / old[name]:>11.2f}" if name in old else f"{'new':>11}"
        lines.append(line)
    gone = [] if old is None else [name for name in old if name not in entries]
    lines += ["", *(f"not run this time: {name}" for name in gone)]
    lines.append(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"GPU: {machine['gpu'] or 'none'}, {machine['system']}"
    )
    versions = values["versions"].items()
    lines.append(", ".join(f"{name} {version or 'not installed'}" for name, version in versions))
    state = " with changes" if values["uncommitted_changes"] else ""
    lines.append(f"commit {values['commit'] or 'unknown'}{state}")
    return "\n".join(lines)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")
