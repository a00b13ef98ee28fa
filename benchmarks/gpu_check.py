"""Everything that needs a GPU, in one go: `make gpu-check`.

Runs the tests marked gpu, then times every operation and the samplers, and writes
benchmarks/results/<gpu>/<date>-<commit>.json and .md as it goes on. What fails or finds no time is
a row that says so. Ends with an error when a test or a row fails.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))

import ctd_engine
import gpu_samplers
from gpu_report import markdown
from gpu_timing import copy_bandwidth, measure
from op_cases import LARGE, SMALL, is_correct, provider_call

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
# of the nine minutes that the whole command may take, two are for the build before this
BUDGET_S, TESTS_S, ROW_S = 420.0, 150.0, 60.0


class OutOfTimeError(BaseException):
    """A row took longer than it may; no handler of errors on the way may take it for one."""


class Budget:
    """Time that is left, and an alarm for the row that would take more."""

    def __init__(self, seconds: float) -> None:
        self._begin = time.monotonic()
        self._seconds = seconds

    @property
    def spent(self) -> float:
        return time.monotonic() - self._begin

    @property
    def left(self) -> float:
        return self._seconds - self.spent

    def row(self, work: Callable[[], dict[str, Any]], most: float = ROW_S) -> dict[str, Any]:
        """What `work` returns, or the reason why it has no numbers, under "failed" or "skipped"."""
        seconds = min(self.left, most)
        if seconds <= 1.0:
            return {"skipped": f"no time left of {self._seconds:.0f} s"}

        def ring(*_: object) -> None:
            raise OutOfTimeError

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return work()
        # one row's fault must not cost the others
        except OutOfTimeError:
            return {"skipped": f"not done after {seconds:.0f} s"}
        except Exception as error:
            return {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)


def ask(*command: str) -> str | None:
    """What a command prints, or None where it is missing or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def run_tests(seconds: float) -> dict[str, Any]:
    """The tests marked gpu, ended with all their children when time is up."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=ROOT, start_new_session=True
        )
        try:
            returncode = child.wait(timeout=max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            returncode = None
        output.seek(0)
        text = output.read().strip()
    print(text[-5000:], flush=True)
    last = text.splitlines()[-1] if text else "no output"
    if returncode is None:
        last = f"not finished after {seconds:.0f} s; the last line was: {last}"
    return {"summary": last, "returncode": returncode}


def time_op(case: Any, provider: str, bandwidth: float | None) -> dict[str, Any]:
    """One number of the table of operations."""
    try:
        call = provider_call(case, provider)
        if not is_correct(case, call, "cuda"):
            return {"failed": "wrong numbers"}
        timing = measure(case, call)
    finally:
        torch.cuda.empty_cache()
    speed = case.num_bytes / timing.median_us / 1e3
    share = None if bandwidth is None else speed / bandwidth
    return {**asdict(timing), "gigabytes_per_s": speed, "of_copy": share}


def time_ops(
    report: dict[str, Any], providers: tuple[str, ...], budget: Budget, write: Callable[[], None]
) -> None:
    """Fill in these providers' numbers, largest sizes first."""
    rows = {row["case"]: row for row in report["ops"]}
    bandwidth = report["copy"].get("gigabytes_per_s")
    for case in tqdm(LARGE + SMALL, desc=f"operations, {' and '.join(providers)}"):
        for provider in providers:
            rows[case.name][provider] = budget.row(
                lambda case=case, provider=provider: time_op(case, provider, bandwidth)
            )
            write()


def time_samplers(report: dict[str, Any], budget: Budget, write: Callable[[], None]) -> None:
    """Fill in the table of samplers."""
    made: list[gpu_samplers.Problem] = []
    for make in gpu_samplers.problems():

        def prepare(make: Any = make) -> dict[str, Any]:
            made.append(make())
            return {}

        fault = budget.row(prepare)
        if fault:
            report["samplers"].append(
                {"problem": make.func.__name__, "samples": "-", "sampler": "all", **fault}
            )
            write()
            continue
        problem = made.pop()
        report["models"][problem.name] = problem.num_parameters
        for name, sampler, further in gpu_samplers.samplers(problem):
            head = {"problem": problem.name, "samples": problem.num_samples, "sampler": name}
            row = budget.row(lambda p=problem, s=sampler, f=further: gpu_samplers.time_one(p, s, f))
            report["samplers"].append({**head, **row})
            write()


def new_report(commit: str | None) -> dict[str, Any]:
    """The report before anything was measured."""
    import triton

    status = ask("git", "status", "--porcelain")
    found = ask("git", "rev-parse", "--short", "HEAD")
    return {
        "gpu": torch.cuda.get_device_properties(0).name,
        "date": datetime.date.today().isoformat(),
        "commit": commit or found or "unknown",
        # a commit that was named is not the tree's own word
        "is_dirty": None if status is None or commit else bool(status),
        "ctd_engine": ctd_engine.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "driver": ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        or "unknown",
        "tests": {"summary": "not run", "returncode": None},
        "copy": {"skipped": "not reached"},
        "ops": [
            {"case": case.name, "megabytes": case.num_bytes / 1e6, "is_large": case in LARGE}
            for case in SMALL + LARGE
        ],
        "samplers": [],
        "models": {},
        "unfinished": ["tests", "fused and eager", "samplers", "compiled"],
        "seconds": 0.0,
    }


def has_failed(report: dict[str, Any]) -> bool:
    """Whether the tests or any row did."""
    entries = [e for row in report["ops"] for e in row.values() if isinstance(e, dict)]
    return report["tests"]["returncode"] != 0 or any(
        "failed" in entry for entry in [report["copy"], *entries, *report["samplers"]]
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="seconds for all of it")
    parser.add_argument("--commit", help="what to call a tree that git does not know")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("gpu-check needs a CUDA device and torch finds none; nothing was measured")
        return 2
    budget = Budget(arguments.budget_s)
    report = new_report(arguments.commit)
    folder = arguments.out / re.sub(r"[^a-z0-9]+", "-", report["gpu"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{report['date']}-{report['commit']}" + ("-dirty" if report["is_dirty"] else "")

    def write() -> None:
        report["seconds"] = budget.spent
        text = json.dumps(report, indent=1) + "\n"
        (folder / f"{stem}.json").write_text(text, encoding="utf-8")
        (folder / f"{stem}.md").write_text(markdown(report), encoding="utf-8")

    def test() -> None:
        report["tests"] = run_tests(min(TESTS_S, budget.left))

    def bandwidth() -> dict[str, Any]:
        return {"gigabytes_per_s": copy_bandwidth()}

    def fused() -> None:
        report["copy"] = budget.row(bandwidth)
        time_ops(report, ("fused", "eager"), budget, write)

    # compiling takes longest, so that what is left of the time goes there
    parts = {
        "tests": test,
        "fused and eager": fused,
        "samplers": lambda: time_samplers(report, budget, write),
        "compiled": lambda: time_ops(report, ("compile",), budget, write),
    }
    for name, part in parts.items():
        part()
        report["unfinished"].remove(name)
        write()
    print(markdown(report))
    print(f"wrote {folder / stem}.json and .md")
    return int(has_failed(report))


if __name__ == "__main__":
    sys.exit(main())
