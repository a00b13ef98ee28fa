"""Samples as bytes: PNG for people, NPY for programs."""

from __future__ import annotations

import io

import numpy as np
import torch

from ctd_engine.plots import image_grid

__all__ = ["npy_bytes", "png_bytes"]


def png_bytes(samples: torch.Tensor) -> bytes:
    """A grid of images [B, C, H, W] in [-1, 1]; what is not finite is black.

    Raises:
        ValueError: the samples are no images.
    """
    from PIL import Image

    if samples.dim() != 4 or samples.shape[1] not in (1, 3):
        raise ValueError(
            f"a picture needs samples [B, 1 or 3, H, W], got {list(samples.shape)}; ask for npy"
        )
    images = samples.detach().float().cpu().nan_to_num(-1.0, -1.0, -1.0)
    buffer = io.BytesIO()
    Image.fromarray(image_grid(images)).save(buffer, "PNG")
    return buffer.getvalue()


def npy_bytes(samples: torch.Tensor) -> bytes:
    """The array [B, *shape] in NumPy's format."""
    buffer = io.BytesIO()
    np.save(buffer, samples.detach().cpu().numpy(), allow_pickle=False)
    return buffer.getvalue()
