"""The report of an experiment: one JSON, one Markdown file, and its pictures."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import ctd_engine
from ctd_engine._files import write_whole
from ctd_engine.experiments.problems import make_problem
from ctd_engine.experiments.settings import Experiment

__all__ = ["BUDGETS", "Mean", "make_report", "mean_of", "write_report"]

BUDGETS = ("steps", "time")


@dataclass(frozen=True)
class Mean:
    """Mean over seeds and its standard error; None for one seed."""

    mean: float
    standard_error: float | None

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2g}"
        return f"{self.mean:.3g}{error}"


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and standard error of independent values."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return Mean(statistics.fmean(values), error)


def make_report(experiment: Experiment, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds of all results, as JSON.

    "values" has one row for every problem, loss, budget and sampler, "floors" what true samples
    get, "costs" the time of a step relative to plain denoising.
    """
    seeds = sorted({result["settings"]["seed"] for result in results})
    rows, costs, floors = [], [], []
    for problem in experiment.problems:
        for sampler in experiment.samplers:
            floor = make_problem(problem, experiment, 0).floor(sampler.num_samples)
            floors.append({"problem": problem, "sampler": sampler.name, "metrics": floor})
        for loss in experiment.losses:
            group = [
                result
                for result in results
                if result["settings"]["problem"] == problem
                and result["settings"]["loss"]["name"] == loss.name
            ]
            costs.append({"problem": problem, "loss": loss.name, "cost": group[0]["cost"]})
            for budget in BUDGETS:
                rows += _rows(experiment, problem, loss.name, budget, group)
    return {
        "experiment": json.loads(json.dumps(asdict(experiment))),
        "seeds": seeds,
        "machine": machine(),
        "costs": costs,
        "floors": floors,
        "values": rows,
    }


def machine() -> dict[str, Any]:
    """Where the report was made."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "ctd_engine": ctd_engine.__version__,
    }


def _rows(
    experiment: Experiment, problem: str, loss: str, budget: str, group: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    snapshots = [result["budgets"][budget] for result in group]
    rows = []
    for sampler in experiment.samplers:
        found = [snapshot["samplers"][sampler.name] for snapshot in snapshots]
        values: dict[str, list[float]] = {}
        for name in found[0]["metrics"]:
            values[name] = [f["metrics"][name] for f in found]
        for name in ("rounds", "evaluations", "rms_difference", "num_failed"):
            values[name] = [f[name] for f in found]
        for name in found[0].get("score_errors", {}):
            values[name] = [f["score_errors"][name] for f in found]
        for name in snapshots[0].get("score_errors", {}):
            values[name] = [s["score_errors"][name] for s in snapshots]
        key = {"problem": problem, "loss": loss, "budget": budget, "sampler": sampler.name}
        training = {
            "steps": snapshots[0]["steps"],
            "cpu_time_s": round(statistics.fmean(s["cpu_time_s"] for s in snapshots), 1),
        }
        means = {name: _rounded(v) for name, v in values.items()}
        rows.append({**key, **training, "metrics": means})
    return rows


def _rounded(values: list[float]) -> dict[str, Any]:
    found = mean_of(values)

    def short(value: float | None) -> float | None:
        return None if value is None else float(f"{value:.4g}")

    return {
        "mean": short(found.mean),
        "standard_error": short(found.standard_error),
        "seeds": [short(value) for value in values],
    }


def write_report(out: Path, report: dict[str, Any], text: str) -> list[Path]:
    """Write report.json, one row a line, and report.md into a folder."""
    paths = [out / "report.json", out / "report.md"]
    write_whole(paths[0], partial(_write_text, text=_lines_of(report)))
    write_whole(paths[1], partial(_write_text, text=text))
    return paths


def _lines_of(report: dict[str, Any]) -> str:
    parts = []
    for name, value in report.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n  ".join(json.dumps(row) for row in value)
            parts.append(f' "{name}": [\n  {rows}\n ]')
        else:
            parts.append(f' "{name}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}"


def _write_text(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")
