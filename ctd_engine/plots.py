"""Pictures: grids of images, points, and the progress of windows. matplotlib, when it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctd_engine.result import RoundRecord

__all__ = ["image_grid", "save_images", "save_points", "save_side_by_side", "save_windows"]


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
    """Write the windows' progress: per round, from where to where each sample's window reached."""
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
