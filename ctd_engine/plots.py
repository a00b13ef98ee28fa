"""Pictures of samples, of windows and of what a model knows. matplotlib, when it is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctd_engine._calibration import Calibration
from ctd_engine._error_maps import ScoreErrors
from ctd_engine._moments import Estimate
from ctd_engine.result import RoundRecord

__all__ = [
    "image_grid",
    "save_calibration",
    "save_denoising_errors",
    "save_images",
    "save_points",
    "save_round_errors",
    "save_score_errors",
    "save_side_by_side",
    "save_windows",
]


# panels of one picture
MOST_MAPS = 3


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise RuntimeError("pictures need matplotlib: pip install 'ctd_engine[demo]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def image_grid(images: Tensor, columns: int | None = None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Images [B, C, H, W] in [-1, 1] as one picture [rows (H+1)+1, columns (W+1)+1, 3], uint8.

    Values outside are clipped; NaN is drawn red.

    Raises:
        ValueError: images of other axes or another number of channels than 1 or 3.
    """
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be [B, 1 or 3, H, W], got {tuple(images.shape)}")
    count, _, height, width = images.shape
    columns = columns or int(np.ceil(count**0.5))
    rows = -(-count // columns)
    pixels = images.detach().cpu().float().expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    is_nan = torch.isnan(pixels).any(-1, keepdim=True)
    pixels = torch.where(is_nan, torch.tensor([1.0, -1.0, -1.0]), pixels)
    pixels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, 3), 96, np.uint8)
    for index, image in enumerate(pixels.numpy()):
        top, left = (index // columns) * (height + 1) + 1, (index % columns) * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image
    return canvas


def save_images(path: Path, images: Tensor) -> None:
    """Write a grid of images [B, C, H, W] as a PNG, enlarged to be seen."""
    pyplot = _pyplot()
    canvas = image_grid(images)
    scale = max(1, 640 // max(canvas.shape[:2]))
    pyplot.imsave(path, np.kron(canvas, np.ones((scale, scale, 1), np.uint8)))


def save_points(path: Path, points: Tensor) -> None:
    """Write a scatter plot of the first two coordinates of points [B, D]."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(5, 5))
    values = points.detach().cpu().numpy()
    axes.scatter(values[:, 0], values[:, min(1, values.shape[1] - 1)], s=4)
    axes.set_aspect("equal")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def save_side_by_side(path: Path, panels: dict[str, Tensor]) -> None:
    """Write grids of images [B, C, H, W] next to each other, each under its title."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.6 * len(panels), 5.0), squeeze=False)
    for axis, (title, images) in zip(axes[0], panels.items(), strict=True):
        axis.imshow(image_grid(images), interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def save_windows(path: Path, history: list[RoundRecord], num_nodes: int) -> None:
    """Write the windows' progress: per round, from where to where each sample's window reached.

    Args:
        path: of the PNG.
        history: `stats.window_history` of a run.
        num_nodes: N, the sampler's `table.num_nodes`.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8.0, 4.2))
    samples = sorted({int(sample) for record in history for sample in record.sample})
    colours = pyplot.get_cmap("viridis")
    for order, sample in enumerate(samples):
        rounds, starts, ends = [], [], []
        for index, record in enumerate(history):
            entry = np.flatnonzero(record.sample == sample)
            if len(entry):
                rounds.append(index + 1)
                starts.append(int(record.start[entry[0]]))
                ends.append(starts[-1] + int(record.length[entry[0]]))
        colour = colours(order / max(1, len(samples) - 1))
        axes.fill_between(rounds, starts, ends, step="mid", color=colour, alpha=0.08, linewidth=0)
        axes.plot(rounds, starts, color=colour, linewidth=0.9, drawstyle="steps-mid")
    limit = max(1, len(history))
    axes.plot(
        [0, limit], [0, limit], "--", color="0.4", linewidth=1, label="sequential: one node a round"
    )
    axes.set_xlim(0, limit + 1)
    axes.set_ylim(0, num_nodes)
    axes.set_xlabel("round (one batched model call)")
    axes.set_ylabel("node of the trajectory")
    axes.set_title(f"Windows of {len(samples)} samples: lines are final, bands are being corrected")
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def save_round_errors(path: Path, errors: Tensor, history: list[RoundRecord]) -> None:
    """Write what `RoundErrors` measured as heat maps over rounds and steps, a panel per sample.

    White lines are the borders of the sample's window. Left of it points are final, right of it
    they have not been reached; between them is what the round evaluated. At most 3 samples.

    Args:
        path: of the PNG.
        errors: [rounds, B, num_nodes + 1], NaN where no window had been.
        history: `stats.window_history` of the run.

    Raises:
        ValueError: the number of rounds is not the history's, or no error is above 0.
    """
    num_rounds, num_samples, num_points = errors.shape
    if num_rounds != len(history):
        raise ValueError(f"errors must be of all {len(history)} rounds, got {num_rounds}")
    finite = errors[errors.isfinite() & (errors > 0)]
    if len(finite) == 0:
        raise ValueError(
            "errors must hold a finite one above 0, got none: there is nothing to draw"
        )
    pyplot = _pyplot()
    columns = min(num_samples, MOST_MAPS)
    size = (1.2 + 3.8 * columns, 4.0)
    figure, axes = pyplot.subplots(
        1, columns, figsize=size, squeeze=False, sharey=True, layout="constrained"
    )
    highest = float(finite.max())
    # five decades; what is below them, 0 too, gets the lowest colour
    norm = pyplot.matplotlib.colors.LogNorm(1e-5 * highest, highest)
    rounds = np.arange(1, num_rounds + 1)
    drawn: Any = None
    for sample, axis in enumerate(axes[0, :columns]):
        values = errors[:, sample].clamp_min(1e-5 * highest).numpy()
        drawn = axis.pcolormesh(
            np.arange(num_points), rounds, values, norm=norm, cmap="viridis", shading="nearest"
        )
        entries = [np.flatnonzero(record.sample == sample) for record in history]
        at = [(rounds[r], history[r], e[0]) for r, e in enumerate(entries) if len(e)]
        # a point of the window has moved once: the one that it begins with is final
        edges = [(r, h.start[e] + 0.5, h.start[e] + h.length[e] + 0.5) for r, h, e in at]
        y = [edge for r, _, _ in edges for edge in (r - 0.5, r + 0.5)]
        for border in (1, 2):
            x = [edge[border] for edge in edges for _ in range(2)]
            axis.plot(x, y, color="white", linewidth=1.2)
        axis.set_facecolor("0.85")
        axis.set(title=f"sample {sample}", xlabel="step, from noise to sample")
    axes[0, 0].set_ylabel("round (one batched model call)")
    axes[0, 0].invert_yaxis()
    figure.colorbar(drawn, ax=axes, label="error of x: rms, against the sequential sampler")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def save_calibration(path: Path, curves: Mapping[str, Calibration]) -> None:
    """Write reliability diagrams: observed frequency against predicted probability."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(5.0, 5.0))
    axes.plot([0, 1], [0, 1], "--", color="0.4", linewidth=1, label="calibrated")
    for title, curve in curves.items():
        # empty bins are NaN, which pyplot leaves out
        x, y, error = (part.numpy() for part in curve[:3])
        axes.errorbar(x, y, error, fmt="o-", capsize=2, label=title)
    axes.set_xlabel("predicted probability of a noise level")
    axes.set_ylabel("how often it was the true one")
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def save_denoising_errors(path: Path, logsnrs: Tensor, curves: Mapping[str, Estimate]) -> None:
    """Write mean squared errors of the noise [Z] over log-SNRs [Z], with their standard errors."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(6.4, 4.2))
    for title, curve in curves.items():
        value, error = curve.value.cpu().numpy(), curve.standard_error.cpu().numpy()
        axes.errorbar(logsnrs.cpu().numpy(), value, error, capsize=2, label=title)
    axes.set_xlabel("log-SNR")
    axes.set_ylabel("squared error of the predicted noise")
    axes.legend(loc="best", frameon=False)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def save_score_errors(path: Path, maps: Mapping[str, ScoreErrors]) -> None:
    """Write maps of the squared error of the predicted noise at points in 1D or 2D, in one scale.

    In 1D a panel per map, over log-SNR and place; in 2D a row per map and a panel per log-SNR. The
    paper's figure 1 (arXiv 2407.08946).

    Raises:
        ValueError: for no maps, points of more than 2 dimensions, maps of different numbers of
            panels, or errors that are not finite.
    """
    if not maps:
        raise ValueError("maps must hold at least one map, got none")
    first = next(iter(maps.values()))
    num_dimensions = first.points[0].numel()
    if num_dimensions > 2 or any(
        (m.points[0].numel(), len(m.logsnrs)) != (num_dimensions, len(first.logsnrs))
        for m in maps.values()
    ):
        raise ValueError("maps must be of points in 1D or 2D, all with as many log-SNRs")
    for title, errors in maps.items():
        if not bool(errors.noise.isfinite().all()):
            raise ValueError(
                f'maps["{title}"] must hold finite errors, got NaN or infinity; the model may have '
                "diverged in training"
            )
    pyplot = _pyplot()
    rows, columns = (1, len(maps)) if num_dimensions == 1 else (len(maps), len(first.logsnrs))
    size = (1.0 + 4.2 * columns, 3.6 * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    values = torch.cat([m.noise.flatten() for m in maps.values()]).cpu()
    highest = float(values.max().clamp_min(1e-12))
    # five decades; what is below them, 0 too, gets the lowest colour
    norm = pyplot.matplotlib.colors.LogNorm(1e-5 * highest, highest)
    drawn: Any = None
    for index, (title, errors) in enumerate(maps.items()):
        points = errors.points.flatten(1).cpu().numpy()
        noise = errors.noise.cpu().clamp_min(1e-5 * highest).numpy()
        levels = errors.logsnrs.numpy()
        if num_dimensions == 1:
            by_place, by_level = np.argsort(points[:, 0]), np.argsort(levels)
            drawn = axes[0, index].pcolormesh(
                levels[by_level],
                points[by_place, 0],
                noise[by_level][:, by_place].T,
                norm=norm,
                shading="nearest",
            )
            axes[0, index].set(title=title, xlabel="log-SNR", ylabel="z")
            continue
        for axis, level, value in zip(axes[index], levels, noise, strict=True):
            drawn = axis.tripcolor(points[:, 0], points[:, 1], value, norm=norm, shading="gouraud")
            axis.set(title=f"{title}, log-SNR {float(level):.3g}", aspect="equal")
    figure.colorbar(drawn, ax=axes, label="squared error of the predicted noise")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
