"""A residual multilayer perceptron for points."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctd_engine.training.unet import TIME_FEATURES, time_features

__all__ = ["PointMLP"]


class PointMLP(nn.Module):
    """Any prediction of points [R, D].

    Args:
        shape: (D,).
        width: hidden units.
        depth: residual blocks.
        num_frequencies: sines and cosines of every coordinate times 1, 2, 4, ... that are added to
            the input, for densities with detail far finer than their extent (Tancik et al. 2020,
            arXiv 2006.10739).
    """

    frequencies: Tensor

    def __init__(
        self, *, shape: tuple[int], width: int = 128, depth: int = 3, num_frequencies: int = 0
    ) -> None:
        super().__init__()
        frequencies = 2.0 ** torch.arange(num_frequencies)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.embed_time = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU())
        self.embed_point = nn.Linear(shape[0] * (1 + 2 * num_frequencies), width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU())
            for _ in range(depth)
        )
        self.out = nn.Linear(width, shape[0])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Raw output [R, D] for points x [R, D] and times t [R]."""
        embedding = self.embed_time(time_features(t, x.dtype))
        if len(self.frequencies):
            angles = (x[:, :, None] * self.frequencies.to(x.dtype)).flatten(1)
            x = torch.cat([x, angles.sin(), angles.cos()], dim=1)
        h: Tensor = self.embed_point(x)
        for block in self.blocks:
            h = h + block(h + embedding)
        return self.out(functional.silu(h))  # type: ignore[no-any-return]
