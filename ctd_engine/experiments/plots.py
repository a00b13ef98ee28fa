"""Pictures of an experiment. matplotlib, when it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ctd_engine import plots
from ctd_engine.experiments.problems import make_problem
from ctd_engine.experiments.runner import Run
from ctd_engine.experiments.score_errors import OFF_PATH
from ctd_engine.experiments.settings import Experiment

__all__ = ["draw_pictures", "require_plots", "save_bars", "save_error_maps", "save_scatter"]

_COLOURS = ("0.35", "tab:orange", "tab:blue", "tab:green", "tab:red", "tab:purple")


def require_plots() -> None:
    """Find out before hours of training.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    plots._pyplot()


def draw_pictures(experiment: Experiment, report: dict[str, Any], out: Path) -> list[Path]:
    """Draw what suits the experiment, from its report and the arrays of the first seed.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    names = [loss.name for loss in experiment.losses]
    kept = {
        (problem, loss.name): load_file(Run(problem, loss, 0).path(out).with_suffix(".safetensors"))
        for problem in experiment.problems
        for loss in experiment.losses
    }
    paths = [out / "quality.png"]
    save_bars(paths[0], report, experiment.samplers[0].name)
    first = kept[experiment.problems[0], names[0]]
    if "error" in first:
        paths.append(out / "error_map.png")
        maps = {name: kept[experiment.problems[0], name] for name in names}
        save_error_maps(paths[-1], maps)
    if first["samples"].dim() == 4:
        paths.append(out / "samples.png")
        panels = {name: kept[experiment.problems[0], name]["samples"][:100] for name in names}
        plots.save_side_by_side(paths[-1], panels)
    elif first["samples"].shape[1] == 2:
        paths.append(out / "samples.png")
        rows = {}
        for problem in experiment.problems:
            true = make_problem(problem, experiment, 0).true_samples(1000, 0)[0]
            models = {name: kept[problem, name]["samples"] for name in names}
            rows[problem] = {"true": true, **models}
        save_scatter(paths[-1], rows)
    return paths


def save_scatter(path: Path, rows: dict[str, dict[str, Tensor]]) -> None:
    """Write scatter plots of points [B, 2]: a row for every problem, a column for every source."""
    pyplot = plots._pyplot()
    columns = list(next(iter(rows.values())))
    figure, axes = pyplot.subplots(
        len(rows), len(columns), figsize=(2.1 * len(columns), 2.1 * len(rows)), squeeze=False
    )
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(name, fontsize=9)
    for line, (problem, panels) in zip(axes, rows.items(), strict=True):
        for axis, points in zip(line, panels.values(), strict=True):
            axis.scatter(points[:, 0], points[:, 1], s=0.5, color="tab:blue")
            axis.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal", xticks=[], yticks=[])
        line[0].set_ylabel(problem.replace("_", " "), fontsize=9)
    figure.savefig(path, dpi=90, bbox_inches="tight")
    pyplot.close(figure)


def save_error_maps(path: Path, maps: dict[str, dict[str, Tensor]]) -> None:
    """Write errors |eps_hat - eps| over points and log-SNRs, the path's region within lines.

    Args:
        path: of the picture.
        maps: by title: points [G], logsnrs [Z], error and density [Z, G].
    """
    pyplot = plots._pyplot()
    figure, axes = pyplot.subplots(
        1, len(maps), figsize=(3.6 * len(maps) + 0.8, 3.4), squeeze=False, sharey=True
    )
    low, high = 1e-3, 3.0
    image = None
    for axis, (title, found) in zip(axes[0], maps.items(), strict=True):
        x, z = found["points"].numpy(), found["logsnrs"].numpy()
        image = axis.pcolormesh(
            z, x, found["error"].T.clamp(low, high).numpy(), norm="log", cmap="magma_r",
            vmin=low, vmax=high, rasterized=True,
        )  # fmt: skip
        share = found["density"] / found["density"].amax(1, keepdim=True)
        axis.contour(z, x, share.T.numpy(), levels=[OFF_PATH], colors="tab:cyan", linewidths=1)
        axis.set(title=title, xlabel="log-SNR")
    axes[0][0].set_ylabel("z")
    figure.colorbar(image, ax=list(axes[0]), label="|eps_hat - eps|, cut at 0.001 and 3")
    figure.savefig(path, dpi=90, bbox_inches="tight")
    pyplot.close(figure)


def save_bars(path: Path, report: dict[str, Any], sampler: str) -> None:
    """Write the statistics of one sampler's samples, mean and standard error over seeds."""
    pyplot = plots._pyplot()
    experiment = report["experiment"]
    problems = experiment["problems"]
    columns = [(experiment["losses"][0]["name"], "steps")]
    columns += [(loss["name"], b) for loss in experiment["losses"][1:] for b in ("steps", "time")]
    rows = {(r["problem"], r["loss"], r["budget"], r["sampler"]): r for r in report["values"]}
    metrics = list(report["floors"][0]["metrics"])
    figure, axes = pyplot.subplots(
        1, len(metrics), figsize=(5.0 * len(metrics), 3.4), squeeze=False
    )
    width = 0.8 / len(columns)
    place = torch.arange(len(problems)).double()
    for axis, metric in zip(axes[0], metrics, strict=True):
        for index, (loss, budget) in enumerate(columns):
            found = [rows[p, loss, budget, sampler]["metrics"][metric] for p in problems]
            axis.bar(
                (place + (index - (len(columns) - 1) / 2) * width).numpy(),
                [f["mean"] for f in found],
                width,
                yerr=[f["standard_error"] or 0.0 for f in found],
                color=_COLOURS[((index + 1) // 2) % len(_COLOURS)],
                alpha=1.0 if budget == "steps" else 0.5,
                label=loss if index == 0 else f"{loss}, equal {budget}",
                error_kw={"linewidth": 0.8},
            )
        axis.set_xticks(place.numpy(), [p.replace("_", "\n") for p in problems], fontsize=8)
        axis.set_title(f"{metric.replace('_', ' ')}, {sampler}", fontsize=10)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper center", ncols=len(columns), fontsize=8, frameon=False
    )
    figure.subplots_adjust(top=0.8)
    figure.savefig(path, dpi=90, bbox_inches="tight")
    pyplot.close(figure)
