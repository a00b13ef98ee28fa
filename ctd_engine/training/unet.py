"""A small U-Net for small images: two resolutions, attention at the lower one, optional labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["SmallUNet", "time_features"]

TIME_FEATURES = 64


def time_features(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Sinusoids of the model time [R] -> [R, 64] (Vaswani et al. 2017, section 3.5)."""
    half = TIME_FEATURES // 2
    rates = torch.exp(torch.arange(half, device=t.device) * (-math.log(10_000.0) / half))
    angles = t.to(torch.promote_types(dtype, torch.float32))[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(dtype)


class _ResBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, embedding: int) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(8, channels_in)
        self.conv_1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.shift = nn.Linear(embedding, channels_out)
        self.norm_2 = nn.GroupNorm(8, channels_out)
        self.conv_2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        nn.init.zeros_(self.conv_2.weight)
        nn.init.zeros_(self.conv_2.bias)  # type: ignore[arg-type]
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_1(functional.silu(self.norm_1(x)))
        h = h + self.shift(embedding)[:, :, None, None]
        h = self.conv_2(functional.silu(self.norm_2(h)))
        return self.skip(x) + h  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, channels: int, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        rows, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).view(rows, 3, self.num_heads, -1, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        h = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(-1, -2).reshape(rows, channels, height, width))  # type: ignore[no-any-return]


class SmallUNet(nn.Module):
    """Epsilon (or any prediction) of images [R, C, H, W] with even H and W.

    Rows do not depend on each other, so that a batch of any mixture of samples is legal.

    Args:
        shape: (C, H, W).
        width: channels at full resolution; twice as many at half resolution. A multiple of 8.
        num_classes: labels 0 .. num_classes - 1 and the null label `num_classes`; None has none.

    Raises:
        ValueError: H or W is odd, or width is not a multiple of 8.
    """

    def __init__(
        self, *, shape: tuple[int, int, int], width: int = 32, num_classes: int | None = None
    ) -> None:
        super().__init__()
        if len(shape) != 3 or shape[1] % 2 or shape[2] % 2:
            raise ValueError(f"shape must be (channels, height, width), both even, got {shape}")
        if width < 8 or width % 8:
            raise ValueError(f"width must be a multiple of 8, got {width}")
        embedding = 4 * width
        self.num_classes = num_classes
        self.embed_time = nn.Sequential(
            nn.Linear(TIME_FEATURES, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.embed_label = None
        if num_classes is not None:
            self.embed_label = nn.Embedding(num_classes + 1, embedding)
        low = 2 * width
        self.conv_in = nn.Conv2d(shape[0], width, 3, padding=1)
        self.down = nn.ModuleList([_ResBlock(width, width, embedding) for _ in range(2)])
        self.shrink = nn.Conv2d(width, low, 3, stride=2, padding=1)
        self.low_1 = _ResBlock(low, low, embedding)
        self.attention = _Attention(low)
        self.low_2 = _ResBlock(low, low, embedding)
        self.grow = nn.Conv2d(low, width, 3, padding=1)
        self.up = nn.ModuleList([_ResBlock(2 * width, width, embedding) for _ in range(2)])
        self.norm_out = nn.GroupNorm(8, width)
        self.conv_out = nn.Conv2d(width, shape[0], 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Raw output [R, C, H, W] for inputs x, times t [R] and int64 labels [R] (None: null)."""
        embedding = self.embed_time(time_features(t, x.dtype))
        if self.embed_label is not None:
            if label is None:
                label = torch.full((len(x),), self.num_classes or 0, device=x.device)
            embedding = embedding + self.embed_label(label)
        embedding = functional.silu(embedding)
        h = self.conv_in(x)
        kept = []
        for block in self.down:
            h = block(h, embedding)
            kept.append(h)
        h = self.low_1(self.shrink(h), embedding)
        h = self.low_2(self.attention(h), embedding)
        h = self.grow(functional.interpolate(h, scale_factor=2.0, mode="nearest"))
        for block in self.up:
            h = block(torch.cat([h, kept.pop()], dim=1), embedding)
        return self.conv_out(functional.silu(self.norm_out(h)))  # type: ignore[no-any-return]
