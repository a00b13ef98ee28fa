"""Run an experiment: every finished run is a file, so that an interrupted experiment goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ctd_engine import _checks
from ctd_engine._files import write_whole
from ctd_engine.denoiser import Model
from ctd_engine.experiments.evaluate import Drawn, draw
from ctd_engine.experiments.problems import Problem, make_problem
from ctd_engine.experiments.score_errors import AskedErrors, error_map
from ctd_engine.experiments.settings import Experiment, LossSettings
from ctd_engine.experiments.shapes import Mixture
from ctd_engine.experiments.train import relative_cost, train

__all__ = ["Run", "list_runs", "run_experiment"]

# kept for the pictures
_KEPT_SAMPLES = 1000


@dataclass(frozen=True)
class Run:
    """One training: a problem, a loss and a seed."""

    problem: str
    loss: LossSettings
    seed: int

    def path(self, out: Path) -> Path:
        """Its result; its samples lie beside it, as .safetensors."""
        return out / "runs" / f"{self.problem}-{self.loss.name}-{self.seed}.json"

    def settings(self, experiment: Experiment) -> dict[str, Any]:
        """All that its result depends on, as JSON."""
        values = asdict(experiment)
        # other problems and losses may come and go
        for name in ("problems", "losses"):
            del values[name]
        values |= {"problem": self.problem, "loss": asdict(self.loss), "seed": self.seed}
        return json.loads(json.dumps(values))  # type: ignore[no-any-return]


def list_runs(experiment: Experiment, num_seeds: int) -> list[Run]:
    """All runs, seed after seed."""
    return [
        Run(problem, loss, seed)
        for seed in range(_checks.require_int("seeds", num_seeds, minimum=1))
        for problem in experiment.problems
        for loss in experiment.losses
    ]


def run_experiment(
    experiment: Experiment, out: Path, num_seeds: int, *, progress: bool = True
) -> list[dict[str, Any]]:
    """Run what is not there yet, and return the results of all runs.

    Args:
        experiment: what to run.
        out: a folder; results are kept in its folder "runs".
        num_seeds: seeds 0 .. num_seeds - 1.
        progress: show a bar of steps.

    Raises:
        ValueError: the folder holds a run with other settings, or a file that is no result.
    """
    runs = list_runs(experiment, num_seeds)
    results = {run: _read(run, experiment, out) for run in runs}
    missing = [run for run in runs if results[run] is None]
    (out / "runs").mkdir(parents=True, exist_ok=True)
    with (
        _one_thread(),
        tqdm(total=len(runs), initial=len(runs) - len(missing), disable=not progress) as bar,
    ):
        for run in missing:
            bar.set_description(f"{run.problem}, {run.loss.name}, seed {run.seed}")
            results[run] = _run(run, experiment, out)
            bar.update(1)
    return [result for result in results.values() if result is not None]


def _read(run: Run, experiment: Experiment, out: Path) -> dict[str, Any] | None:
    path = run.path(out)
    if not path.is_file():
        return None
    fix = "choose another --out, or remove its folder runs to start anew"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        found = result["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the result of a run ({error!r}); {fix}") from error
    expected = run.settings(experiment)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{path} was made with other settings: {name} is {found.get(name)}, this command "
                f"asks for {expected.get(name)}; {fix}"
            )
    return result  # type: ignore[no-any-return]


def _run(run: Run, experiment: Experiment, out: Path) -> dict[str, Any]:
    problem = make_problem(run.problem, experiment, run.seed)
    cost = _cost(run, problem, experiment, out)
    # equal time: as many steps as fit in the time of plain denoising's
    budgets = {"steps": experiment.steps, "time": max(1, round(experiment.steps / cost))}
    trained = train(problem, experiment, run.loss, run.seed, list(budgets.values()))
    snapshots, arrays = {}, {}
    for steps, snapshot in trained.items():
        result, kept = _evaluate(snapshot.model, problem, experiment, run.seed)
        names = [name for name, value in budgets.items() if value == steps]
        for name in names:
            snapshots[name] = {"steps": steps, "cpu_time_s": snapshot.cpu_time_s, **result}
        if "steps" in names:
            arrays = kept
    result = {"settings": run.settings(experiment), "cost": cost, "budgets": snapshots}
    path = run.path(out)
    write_whole(path.with_suffix(".safetensors"), partial(save_file, arrays))
    # last, because it says that the run is finished
    write_whole(path, partial(_write_json, value=result))
    return result


def _cost(run: Run, problem: Problem, experiment: Experiment, out: Path) -> float:
    """Time of a step relative to plain denoising: measured once, so that all seeds agree."""
    if run.loss.contrastive_weight is None:
        return 1.0
    path = out / "runs" / f"cost-{run.problem}-{run.loss.name}.json"
    settings = Run(run.problem, run.loss, 0).settings(experiment)
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["settings"] == settings:
            return float(kept["cost"])
    cost = relative_cost(problem, experiment, run.loss)
    write_whole(path, partial(_write_json, value={"settings": settings, "cost": cost}))
    return cost


def _evaluate(
    model: Model, problem: Problem, experiment: Experiment, seed: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    values: dict[str, Any] = {}
    arrays: dict[str, Tensor] = {}
    first: dict[tuple[str, int], Drawn] = {}
    mixture = problem.distribution if experiment.has_score_errors else None
    for sampler in experiment.samplers:
        asked = AskedErrors(model, mixture) if isinstance(mixture, Mixture) else None
        drawn = draw(asked or model, problem, sampler, seed)
        oracle = first.setdefault((sampler.solver, sampler.num_steps), drawn)
        values[sampler.name] = {
            "metrics": problem.metrics(drawn.samples, drawn.labels),
            "rounds": drawn.rounds,
            "evaluations": drawn.evaluations,
            "num_failed": drawn.num_failed,
            # the sequential sampler of this solver comes first, with the same noise
            "rms_difference": _rms(drawn.samples, oracle.samples[: len(drawn.samples)]),
        }
        if asked is not None:
            values[sampler.name]["score_errors"] = asked.summary()
        arrays.setdefault("samples", drawn.samples[:_KEPT_SAMPLES].contiguous())
    result = {"samplers": values}
    if isinstance(mixture, Mixture):
        found = error_map(model, mixture)
        result["score_errors"] = found.summary()
        arrays |= {name: getattr(found, name) for name in ("points", "logsnrs", "error", "density")}
    return result, arrays


def _rms(x: Tensor, y: Tensor) -> float:
    return float((x - y).square().mean().sqrt())


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processor time is comparable, and results are repeatable, with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
