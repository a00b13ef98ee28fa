"""Training data: the bundled digits, points in a CSV file, a folder of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["Dataset", "load_data"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True)
class Dataset:
    """`x` [M, *shape] float32 in model units, data = x * scale + offset; labels [M] or None."""

    name: str
    x: Tensor
    labels: Tensor | None
    scale: float = 1.0
    offset: float = 0.0

    @property
    def num_classes(self) -> int | None:
        """Labels 0 .. num_classes - 1."""
        return None if self.labels is None else int(self.labels.max()) + 1


def load_data(source: str) -> Dataset:
    """Read "digits", a CSV file of points, or a folder of images.

    Digits are scikit-learn's 1797 handwritten digits, 1x8x8 in [-1, 1], with labels. Points are
    one row of numbers each (a header line is allowed), shifted and scaled together to mean 0 and
    standard deviation 1. Images must have one size; they are scaled to [-1, 1].

    Raises:
        ValueError: the source is not there, is empty, or does not have one shape.
        RuntimeError: a package that reads it is not installed.
    """
    if source == "digits":
        return _digits()
    path = Path(source)
    if path.is_dir():
        return _images(path)
    if path.is_file() and path.suffix.lower() == ".csv":
        return _points(path)
    raise ValueError(
        f'data must be "digits", a .csv file or a folder of images, got {source!r}, which is '
        + ("no such thing" if path.exists() else "not there")
    )


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RuntimeError(
            "the digits come with scikit-learn: pip install 'ctd_engine[demo]'"
        ) from error
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 8.0 - 1.0
    return Dataset("digits", images, torch.from_numpy(bunch.target).long())


def _points(path: Path) -> Dataset:
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline()
        has_header = any(not _is_number(cell) for cell in first.split(","))
        values = np.loadtxt(path, delimiter=",", skiprows=int(has_header), ndmin=2)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(
            f"data {path}: every line must hold the same count of numbers: {error}"
        ) from error
    if values.size == 0:
        raise ValueError(f"data {path}: expected at least one line of numbers, got none")
    if not np.isfinite(values).all():
        raise ValueError(f"data {path}: expected finite numbers, got NaN or infinity")
    points = torch.from_numpy(values)
    offset = float(points.mean())
    scale = float(points.std(correction=0)) or 1.0
    return Dataset(path.name, ((points - offset) / scale).float(), None, scale, offset)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _images(folder: Path) -> Dataset:
    try:
        from PIL import Image
    except ImportError as error:
        raise RuntimeError("images need pillow: pip install 'ctd_engine[demo]'") from error
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"data {folder}: expected images {list(IMAGE_SUFFIXES)}, got none")
    arrays: list[Tensor] = []
    for file in files:
        try:
            with Image.open(file) as image:
                grey = image.mode in ("1", "L", "I;16")
                pixels = np.asarray(image.convert("L" if grey else "RGB"))
        except OSError as error:
            raise ValueError(f"data {file}: not a readable image: {error}") from error
        tensor = torch.from_numpy(pixels.copy()).float() / 127.5 - 1.0
        arrays.append(tensor.unsqueeze(0) if grey else tensor.permute(2, 0, 1))
        if arrays[-1].shape != arrays[0].shape:
            raise ValueError(
                f"data {folder}: all images must have one size and mode, {files[0].name} is "
                f"{tuple(arrays[0].shape)} and {file.name} is {tuple(arrays[-1].shape)}; "
                "resize or convert them first"
            )
    return Dataset(folder.name, torch.stack(arrays), None)
