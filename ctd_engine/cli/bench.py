"""ctd-engine bench"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click

import ctd_engine
from ctd_engine.cli._common import json_option, one_line_errors

__all__ = ["bench"]


@click.command(context_settings={"ignore_unknown_options": True})
@json_option
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@one_line_errors
def bench(as_json: bool, arguments: tuple[str, ...]) -> None:
    """Run the benchmarks of the checkout; ARGUMENTS go to pytest (such as -k rounds)."""
    folder = Path(ctd_engine.__file__).parent.parent / "benchmarks"
    if not folder.is_dir():
        raise RuntimeError(
            f"the benchmarks are part of a checkout and {folder} is not there; clone the project "
            "and install it with `pip install -e .[test]`"
        )
    command = [sys.executable, "-m", "pytest", str(folder), "--benchmark-only", *arguments]
    if not as_json:
        raise SystemExit(subprocess.run(command, cwd=folder.parent, check=False).returncode)
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.json"
        command.append(f"--benchmark-json={report}")
        done = subprocess.run(command, cwd=folder.parent, check=False, stdout=subprocess.DEVNULL)
        if not report.is_file():
            raise RuntimeError(f"pytest ended with exit code {done.returncode} and no report")
        click.echo(json.dumps(json.loads(report.read_text())))
    raise SystemExit(done.returncode)
