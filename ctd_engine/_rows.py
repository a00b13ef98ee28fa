"""Rows of a model call: random numbers, conditioning, and checks of what goes in and comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Model = Callable[..., Tensor]


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Shape a `[R]` tensor so that it multiplies `[R, *shape]`, with the dtype and device of it."""
    return values.to(like.device, like.dtype).reshape(-1, *[1] * (like.dim() - 1))


def draw_device(x: Tensor, generator: torch.Generator | None) -> torch.device:
    """Random numbers are drawn where the generator lives, and copied from there."""
    return x.device if generator is None else generator.device


def draw_normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers in at least fp32, on the device of `like`."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    device = draw_device(like, generator)
    return torch.randn(shape, generator=generator, device=device, dtype=dtype).to(like.device)


def noised(x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
    """sqrt(sigmoid(logsnr)) x + sqrt(sigmoid(-logsnr)) eps for rows `[R, *shape]`, logsnr `[R]`.

    The variance-preserving path, in the dtype of eps at least; x itself for logsnr = +inf.
    """
    signal = per_row(torch.sigmoid(logsnr).sqrt(), eps)
    return signal * x + per_row(torch.sigmoid(-logsnr).sqrt(), eps) * eps


def check_batch(x: Tensor, name: str = "x") -> None:
    """A batch of samples: floating point, at least one, at least one dimension each."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(
            f"{name} must be a floating-point tensor, got {x.dtype}; convert and scale it first, "
            "for images to [-1, 1]"
        )
    if x.dim() < 2 or x.shape[0] == 0:
        raise ValueError(f"{name} must have shape [num_samples >= 1, *shape], got {tuple(x.shape)}")


def repeat_cond(cond: Mapping[str, Any], index: Tensor | None, num_samples: int) -> dict[str, Any]:
    """Conditioning of the model's rows; row r belongs to sample index[r] (None: row r).

    Tensors inside dicts, lists and tuples too, such as the `added_cond_kwargs` of diffusers.
    """
    return {name: _rows_of(value, name, index, num_samples) for name, value in cond.items()}


def _rows_of(value: Any, name: str, index: Tensor | None, num_samples: int) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _rows_of(inner, f"{name}[{key!r}]", index, num_samples)
            for key, inner in value.items()
        }
    # not a named tuple: those have their own constructor
    if type(value) in (list, tuple):
        parts = (
            _rows_of(inner, f"{name}[{place}]", index, num_samples)
            for place, inner in enumerate(value)
        )
        return type(value)(parts)
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if value.shape[0] != num_samples:
        raise ValueError(
            f"{name} must have one entry per sample, first dimension {num_samples}, got "
            f"shape {tuple(value.shape)}; bind what all samples share to the model with "
            "functools.partial"
        )
    return value if index is None else value[index.to(value.device)]


def call_model(
    model: Model, x: Tensor, time: Tensor, dtype: torch.dtype, cond: Mapping[str, Any]
) -> Tensor:
    """Call the model on rows and check what comes back; times keep fp32 at least, or integers."""
    time = time.to(x.device, x.dtype if time.is_floating_point() else time.dtype)
    out = model(x.to(dtype), time, **cond)
    if not isinstance(out, Tensor):
        raise TypeError(
            f"model must return a tensor, got {type(out).__name__}; wrap a model that returns "
            "more, those of diffusers as lambda x, t, **cond: model(x, t, **cond).sample"
        )
    if out.shape != x.shape:
        raise ValueError(
            f"model must return the shape of its input, {tuple(x.shape)} = (rows, *shape), got "
            f"{tuple(out.shape)}"
        )
    return out.to(x.dtype)
