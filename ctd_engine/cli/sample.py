"""ctd-engine sample"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from ctd_engine import plots
from ctd_engine._files import write_whole
from ctd_engine.animation import Animation
from ctd_engine.cli._common import emit, json_option, one_line_errors
from ctd_engine.cli._launch import launched
from ctd_engine.result import RoundProgress, SampleResult, StopReason
from ctd_engine.round_errors import RoundErrors
from ctd_engine.sampler import ParallelSampler, SequentialSampler
from ctd_engine.training.checkpoint import Checkpoint, load_checkpoint

__all__ = ["sample"]


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="samples.png",
    show_default=True,
    help="A .png picture or a .npy array; statistics go to the same name with .json.",
)
@click.option("--num-samples", type=int, default=16, show_default=True)
@click.option("--solver", default="ddpm", show_default=True)
@click.option("--num-steps", type=int, default=1000, show_default=True)
@click.option("--window-size", default="auto", show_default=True, help='Points, or "auto".')
@click.option("--tolerance", type=float, default=0.1, show_default=True)
@click.option("--max-rows", type=int, default=1024, show_default=True, help="Rows per model call.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--label", type=int, help="Class of all samples; the default is every class in turn.")
@click.option("--guidance", type=float, help="Classifier-free guidance scale.")
@click.option("--clip/--no-clip", default=None, help="Clip x0 to [-1, 1] (default for images).")
@click.option("--sequential", is_flag=True, help="One model call per step, as the oracle does.")
@click.option(
    "--animate",
    type=click.Path(path_type=Path),
    metavar="OUT.gif",
    help="Also write how the trajectories settle, a frame per round; keeps all their points.",
)
@click.option(
    "--error-map",
    type=click.Path(path_type=Path),
    metavar="OUT.png",
    help="Also sample sequentially, and draw the error of every point after every round.",
)
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--split",
    type=click.Choice(["auto", "rows", "samples"]),
    default="auto",
    show_default=True,
    help="What the ranks share, where torchrun started this.",
)
@json_option
@one_line_errors
def sample(
    checkpoint: Path,
    out: Path,
    num_samples: int,
    solver: str,
    num_steps: int,
    window_size: str,
    tolerance: float,
    max_rows: int,
    seed: int,
    label: int | None,
    guidance: float | None,
    clip: bool | None,
    sequential: bool,
    animate: Path | None,
    error_map: Path | None,
    device: str,
    split: str,
    as_json: bool,
) -> None:
    """Sample CHECKPOINT and write the samples with their statistics.

    On many GPUs: torchrun --nproc-per-node 8 -m ctd_engine sample CHECKPOINT --device cuda
    """
    if out.suffix not in (".png", ".npy"):
        raise ValueError(f"--out must end in .png or .npy, got {out}")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: the folder {out.parent} is not there; make it first")
    _check_picture("--animate", animate, ".gif", sequential)
    _check_picture("--error-map", error_map, ".png", sequential)
    trained = load_checkpoint(checkpoint)
    is_image = len(trained.shape) == 3
    cond, null_cond = _conditioning(trained, num_samples, label, guidance)
    with launched(device) as launch:
        options: dict[str, Any] = dict(
            shape=trained.shape,
            schedule=trained.schedule,
            solver=solver,
            num_steps=num_steps,
            prediction=trained.prediction,
            clip_x0=1.0 if (is_image if clip is None else clip) else None,
            null_cond=null_cond,
            device=launch.device,
        )
        model = trained.model.to(launch.device)
        sampler: ParallelSampler | SequentialSampler
        if sequential:
            if launch.process_group is not None:
                raise ValueError("--sequential runs in one process: start it without torchrun")
            sampler = SequentialSampler(model, **options)
        else:
            sampler = ParallelSampler(
                model,
                **options,
                window_size=int(window_size) if window_size.isdigit() else window_size,
                tolerance=tolerance,
                max_rows=max_rows,
                process_group=launch.process_group,
                split=split,
            )
        if (animate or error_map) and launch.process_group is not None:
            name = "--error-map" if animate is None else "--animate"
            raise ValueError(f"{name} runs in one process: start it without torchrun")
        draws: dict[str, Any] = dict(seed=seed, cond=cond, guidance_scale=guidance)
        animation = None if animate is None else Animation(sampler.table.num_nodes)
        errors = None
        if error_map is not None:
            oracle = SequentialSampler(model, **options)
            truth = oracle.sample(num_samples, **draws, keep_trajectory=True).trajectory
            assert truth is not None
            errors = RoundErrors(truth)
        watchers = [watcher for watcher in (animation, errors) if watcher is not None]

        def tell(progress: RoundProgress) -> None:
            for watcher in watchers:
                watcher(progress)

        result = sampler.sample(
            num_samples,
            **draws,
            progress=launch.is_first and not as_json,
            callback=tell if watchers else None,
            keep_trajectory=bool(watchers),
        )
    if not launch.is_first:
        return
    data = trained.config["data"]
    samples = result.samples.cpu() * data["scale"] + data["offset"]
    write_whole(out, partial(_write_samples, samples=samples))
    if animation is not None and animate is not None:
        write_whole(animate, animation.save)
    if errors is not None and error_map is not None:
        draw = partial(
            plots.save_round_errors, errors=errors.errors(), history=result.stats.window_history
        )
        write_whole(error_map, draw)
    values = _statistics(result, out)
    statistics = out.with_suffix(".json")
    write_whole(statistics, partial(_write_text, text=json.dumps(values, indent=1)))
    stats = result.stats
    text = (
        f"{out}: {num_samples} samples, {stats.rounds} rounds, "
        f"{stats.evaluations / num_samples:.0f} evaluations per sample, {stats.wall_time_s:.1f} s\n"
        f"{statistics}: statistics"
    )
    if animate is not None:
        text += f"\n{animate}: the trajectories, round by round"
    if error_map is not None:
        text += f"\n{error_map}: the error of every point after every round"
    if stats.plan is not None:
        text += f"\nwindow, chosen from measured times: {stats.plan.best.window_size} points"
    bad = sum(reason is not StopReason.CONVERGED for reason in result.stop_reasons)
    if bad:
        text += f"\n{bad} samples did not converge; the reasons are in {statistics}"
    emit(values, text, as_json)


def _check_picture(name: str, path: Path | None, suffix: str, sequential: bool) -> None:
    if path is None:
        return
    if path.suffix != suffix:
        raise ValueError(f"{name} must end in {suffix}, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"{name} {path}: the folder {path.parent} is not there; make it first")
    if sequential:
        raise ValueError(f"{name} draws the rounds of a parallel run; leave out --sequential")


def _conditioning(
    trained: Checkpoint, num_samples: int, label: int | None, guidance: float | None
) -> tuple[dict[str, torch.Tensor] | None, dict[str, torch.Tensor] | None]:
    num_classes = trained.config.get("num_classes")
    if num_classes is None:
        if label is not None or guidance is not None:
            raise ValueError("--label and --guidance need a model trained with labels")
        return None, None
    if label is not None and not 0 <= label < num_classes:
        raise ValueError(f"--label must be in [0, {num_classes - 1}], got {label}")
    labels = torch.arange(max(num_samples, 1)) % num_classes
    if label is not None:
        labels = torch.full_like(labels, label)
    return {"label": labels}, {"label": torch.tensor([num_classes])}


def _write_text(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")


def _write_samples(path: Path, samples: torch.Tensor) -> None:
    if path.suffix == ".npy":
        np.save(path, samples.numpy())
    elif samples.dim() == 4:
        plots.save_images(path, samples)
    else:
        plots.save_points(path, samples)


def _statistics(result: SampleResult, out: Path) -> dict[str, Any]:
    stats = result.stats
    return {
        "samples": str(out),
        "num_samples": len(result.samples),
        "rounds": stats.rounds,
        "evaluations": stats.evaluations,
        "wall_time_s": stats.wall_time_s,
        "state_bytes": stats.state_bytes,
        "planned_window": None if stats.plan is None else stats.plan.best.window_size,
        "rounds_per_sample": stats.rounds_per_sample.tolist(),
        "evaluations_per_sample": stats.evaluations_per_sample.tolist(),
        "stop_reasons": [reason.name for reason in result.stop_reasons],
        "seeds": result.seeds,
    }
