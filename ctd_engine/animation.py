"""A trajectory that settles, round by round, as an animated GIF. Pillow, when it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctd_engine.plots import image_grid
from ctd_engine.result import RoundProgress

__all__ = ["Animation"]

# what is drawn of a run
MOST_SAMPLES, MOST_NODES = 8, 12
FRAME_MS, LAST_FRAME_MS = 250, 2500
HEADER = 18
OPEN, FINAL, UNREACHED = (96, 96, 96), (38, 166, 91), (40, 40, 48)
MOST_WIDTH, SIDE = 660, 420


def _pillow() -> Any:
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise RuntimeError("animations need Pillow: pip install 'ctd_engine[demo]'") from error
    return Image, ImageDraw


class Animation:
    """Draws a frame per round: the callback of `ParallelSampler.sample(keep_trajectory=True)`.

    Of images [C, H, W]: a row per sample and a column per node of the trajectory, from noise to the
    sample; each cell is the data prediction x0 that the model made there last, with a green frame
    once no later round changes it (the columns of diffusion trajectories in Shih et al. 2023, arXiv
    2305.16317, figure 1). Of points [D]: the trajectories in their first two coordinates, green
    where they are final. At most 8 samples are drawn, and 12 nodes of images.

    Args:
        num_nodes: N, the sampler's `table.num_nodes`.

    Raises:
        RuntimeError: Pillow is not installed.
    """

    def __init__(self, num_nodes: int) -> None:
        self._image, self._draw = _pillow()
        self._num_nodes = num_nodes
        self._frames: list[Any] = []

    def __call__(self, progress: RoundProgress) -> None:
        """Draw the round's frame.

        Raises:
            ValueError: the run does not keep its points.
        """
        points = progress.points
        if points is None:
            raise ValueError(
                "an animation needs the points of a parallel run: sample(keep_trajectory=True)"
            )
        is_image = points.x0(0).dim() == 4
        count = min(MOST_NODES if is_image else self._num_nodes, self._num_nodes)
        nodes = np.linspace(0, self._num_nodes - 1, count).round().astype(int)
        read = points.x0 if is_image else points.x
        values = torch.stack([read(int(node))[:MOST_SAMPLES].cpu() for node in nodes], dim=1)
        is_final = nodes[None] < points.num_final[:MOST_SAMPLES, None]
        picture = self._cells(values, is_final) if is_image else self._paths(values, is_final)
        title = f"round {progress.round}: {int(points.num_final.min())} of {self._num_nodes} final"
        self._frames.append(self._titled(picture, title))

    def save(self, path: Path) -> None:
        """Write all frames as a GIF that repeats.

        Raises:
            ValueError: there was no round yet.
        """
        if not self._frames:
            raise ValueError("an animation needs a round at the least, got none")
        first, *rest = (frame.quantize(64) for frame in self._frames)
        durations = [FRAME_MS] * len(rest) + [LAST_FRAME_MS]
        first.save(path, save_all=True, append_images=rest, duration=durations, loop=0)

    def _cells(self, x0: Tensor, is_final: np.ndarray[Any, Any]) -> Any:
        num_columns, flat = x0.shape[1], x0.flatten(0, 1)
        is_reached = flat.flatten(1).isfinite().all(1).numpy()
        canvas = image_grid(flat, columns=num_columns)
        scale = max(1, MOST_WIDTH // canvas.shape[1])
        height, width = scale * (flat.shape[2] + 1), scale * (flat.shape[3] + 1)
        canvas = np.kron(canvas, np.ones((scale, scale, 1), np.uint8))
        picture = self._image.fromarray(canvas)
        draw = self._draw.Draw(picture)
        # neighbours share an edge: those of final cells are drawn over the others'
        for cell in np.argsort(is_final.flatten(), kind="stable"):
            row, column = divmod(int(cell), num_columns)
            left, top = column * width, row * height
            draw.rectangle(
                # with the lines on both sides; the last pixel is part of a rectangle
                [left, top, left + width + scale - 1, top + height + scale - 1],
                outline=FINAL if is_final.flat[cell] else OPEN,
                fill=None if is_reached[cell] else UNREACHED,
                width=scale,
            )
        return picture

    def _paths(self, x: Tensor, is_final: np.ndarray[Any, Any]) -> Any:
        picture = self._image.new("RGB", (SIDE, SIDE), (255, 255, 255))
        draw = self._draw.Draw(picture)
        ends = [0, min(1, x.shape[2] - 1)]
        # most of a normal start lies within 3.5
        places = SIDE / 2 * (1.0 + x.flatten(2)[:, :, ends].numpy() / 3.5)
        for path, final in zip(places, is_final, strict=True):
            known = np.isfinite(path).all(1)
            for mask, colour in ((known, OPEN), (known & final, FINAL)):
                line = [(float(a), SIDE - float(b)) for a, b in path[mask]]
                if len(line) > 1:
                    draw.line(line, fill=colour, width=2)
        return picture

    def _titled(self, picture: Any, title: str) -> Any:
        frame = self._image.new("RGB", (picture.width, picture.height + HEADER), (255, 255, 255))
        frame.paste(picture, (0, HEADER))
        self._draw.Draw(frame).text((4, 3), title, fill=(0, 0, 0))
        return frame
