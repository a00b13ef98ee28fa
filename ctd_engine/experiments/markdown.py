"""The report as Markdown: one table for every sampler and statistic."""

from __future__ import annotations

from typing import Any

from ctd_engine.experiments.report import BUDGETS, Mean, mean_of

__all__ = ["markdown"]

_TITLES = {
    "mmd": "squared MMD",
    "energy_distance": "energy distance",
    "accuracy": "accuracy of the nearest held-out image's class",
    "on_path": "error of epsilon on the path",
    "off_path": "error of epsilon off the path",
    "asked": "error of epsilon where the sampler asked",
    "share_off_path": "share of the sampler's questions off the path",
}
# of the model alone: the same for every sampler
_OF_THE_MODEL = ("on_path", "off_path")
_COSTS = ("rounds", "evaluations", "rms_difference")


def markdown(report: dict[str, Any]) -> str:
    """All tables of a report from `make_report`."""
    experiment = report["experiment"]
    seeds = len(report["seeds"])
    lines = [
        f"# Experiment {experiment['name']}",
        "",
        f"{experiment['steps']} steps of {experiment['batch_size']}, learning rate "
        f"{experiment['lr']:g}, {seeds} seeds; mean ± standard error over seeds. "
        "Equal time: as many steps as take the time of plain denoising's.",
        "",
        *_cost_table(report),
    ]
    names = list(dict.fromkeys(n for row in report["values"] for n in row["metrics"]))
    samplers = [sampler["name"] for sampler in experiment["samplers"]]
    for name in names:
        if name in _COSTS or name == "num_failed":
            continue
        for sampler in samplers[:1] if name in _OF_THE_MODEL else samplers:
            title = _TITLES.get(name, name)
            if name not in _OF_THE_MODEL:
                title += f", {sampler}"
            lines += [f"## {title[0].upper()}{title[1:]}", "", *_table(report, sampler, name)]
    lines += ["## Rounds, evaluations per sample, difference from sequential", ""]
    lines += _sampler_table(report)
    failed = sum(sum(row["metrics"]["num_failed"]["seeds"]) for row in report["values"])
    return "\n".join([*lines, f"Samples that did not converge: {failed:.0f}."])


def _columns(report: dict[str, Any]) -> list[tuple[str, str]]:
    losses = [loss["name"] for loss in report["experiment"]["losses"]]
    # plain denoising's budgets are one and the same
    pairs = [(losses[0], "steps")]
    return pairs + [(loss, budget) for loss in losses[1:] for budget in BUDGETS]


def _heading(loss: str, budget: str, first: str) -> str:
    return loss if loss == first else f"{loss}, equal {budget}"


def _find(report: dict[str, Any], **key: str) -> dict[str, Any]:
    for row in report["values"]:
        if all(row[name] == value for name, value in key.items()):
            return row  # type: ignore[no-any-return]
    raise KeyError(f"the report has no row {key}")


def _table(report: dict[str, Any], sampler: str, metric: str) -> list[str]:
    columns = _columns(report)
    first = columns[0][0]
    heads = [_heading(loss, budget, first) for loss, budget in columns]
    lines = [_row(["", "true samples ± sd", *heads]), _row(["---"] * (len(heads) + 2))]
    values: dict[tuple[str, str], list[list[float]]] = {column: [] for column in columns}
    for problem in report["experiment"]["problems"]:
        cells = []
        for column in columns:
            found = _find(
                report, problem=problem, loss=column[0], budget=column[1], sampler=sampler
            )["metrics"][metric]
            cells.append(str(Mean(found["mean"], found["standard_error"])))
            values[column].append(found["seeds"])
        lines.append(_row([problem, _floor(report, problem, sampler, metric), *cells]))
    base = values[columns[0]]
    if _is_in_noise(report, sampler, metric, base):
        return [
            *lines,
            "",
            "No ratio: plain denoising is not far enough from zero, given what true samples get.",
            "",
        ]
    ratios = [_ratio(values[column], base) for column in columns[1:]]
    return [*lines, _row(["relative to the first, all", "", "1", *ratios]), ""]


def _is_in_noise(
    report: dict[str, Any], sampler: str, metric: str, base: list[list[float]]
) -> bool:
    """Whether plain denoising with some seed is within three deviations of true samples' zero."""
    deviations = [
        floor["metrics"][metric]["standard_deviation"]
        for floor in report["floors"]
        if floor["sampler"] == sampler and metric in floor["metrics"]
    ]
    # of the sum over problems
    deviation = sum(value**2 for value in deviations) ** 0.5
    return any(abs(sum(seed)) < 3.0 * deviation for seed in zip(*base, strict=True))


def _ratio(values: list[list[float]], base: list[list[float]]) -> str:
    """Mean over problems by that of the base, seed by seed: mean ± standard error."""
    ours, theirs = ([sum(seed) for seed in zip(*v, strict=True)] for v in (values, base))
    if 0.0 in theirs:
        return ""
    return str(mean_of([a / b for a, b in zip(ours, theirs, strict=True)]))


def _floor(report: dict[str, Any], problem: str, sampler: str, metric: str) -> str:
    for floor in report["floors"]:
        if (floor["problem"], floor["sampler"]) == (problem, sampler):
            found = floor["metrics"].get(metric)
            if found is not None:
                return f"{found['mean']:.2g} ± {found['standard_deviation']:.2g}"
    return ""


def _sampler_table(report: dict[str, Any]) -> list[str]:
    columns = _columns(report)
    first = columns[0][0]
    lines = [
        _row(["", "sampler", *(_heading(loss, budget, first) for loss, budget in columns)]),
        _row(["---"] * (len(columns) + 2)),
    ]
    for problem in report["experiment"]["problems"]:
        for sampler in report["experiment"]["samplers"]:
            cells = []
            for loss, budget in columns:
                key = dict(problem=problem, loss=loss, budget=budget, sampler=sampler["name"])
                metrics = _find(report, **key)["metrics"]
                rounds, evaluations, difference = (metrics[name]["mean"] for name in _COSTS)
                cells.append(f"{rounds:.4g}, {evaluations:.0f}, {difference:.2g}")
            lines.append(_row([problem, sampler["name"], *cells]))
    return [*lines, ""]


def _cost_table(report: dict[str, Any]) -> list[str]:
    losses = [loss["name"] for loss in report["experiment"]["losses"]]
    lines = [_row(["time of a step", *losses]), _row(["---"] * (len(losses) + 1))]
    for problem in report["experiment"]["problems"]:
        costs = {c["loss"]: c["cost"] for c in report["costs"] if c["problem"] == problem}
        lines.append(_row([problem, *(f"{costs[loss]:.2f}" for loss in losses)]))
    return [*lines, ""]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
