"""Checks of the sampling operations' arguments: shapes, types and devices.

They stand in the sampler's inner loop: cheap, and no value is looked at, which would wait for a
GPU.
"""

from __future__ import annotations

import torch

__all__ = [
    "check_floats",
    "check_indices",
    "check_noise",
    "check_ring",
    "check_states",
    "check_tensor",
    "with_unit_stride",
]

STATE_DTYPES = (torch.float32, torch.float64)


def check_tensor(
    name: str,
    value: torch.Tensor,
    shape: tuple[int, ...],
    axes: str,
    dtype: torch.dtype | None,
    device: torch.device,
) -> None:
    """Raise unless `value` has this shape (`axes` in letters), type (None: any float) and device.

    Raises:
        TypeError: not a tensor, or of another type.
        ValueError: another shape or device.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.shape != shape:
        raise ValueError(
            f"{name} must have shape {tuple(shape)} = {axes}, got {tuple(value.shape)}"
        )
    if value.dtype != dtype and (dtype is not None or not value.is_floating_point()):
        wanted = "of a floating-point type" if dtype is None else dtype
        raise TypeError(f"{name} must be {wanted}, got {value.dtype}")
    if value.device != device:
        raise ValueError(
            f"{name} must be on the device of the others, {device}, got {value.device}"
        )


def check_indices(
    size: int, axes: str, device: torch.device, named: dict[str, torch.Tensor]
) -> None:
    """Raise unless every one is int64 of this size."""
    shape, int64 = (size,), torch.int64
    for name, value in named.items():
        # the usual case without a call: a round has 8 of them
        if (
            not isinstance(value, torch.Tensor)
            or value.shape != shape
            or value.dtype is not int64
            or value.device != device
        ):
            check_tensor(name, value, shape, axes, int64, device)


def check_floats(name: str, value: torch.Tensor, axes: str) -> None:
    """Raise unless `value` has 3 dimensions, in fp32 or fp64; the first argument sets the rest.

    Raises:
        TypeError: not a tensor, or of another type.
        ValueError: another number of dimensions.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dim() != 3:
        raise ValueError(f"{name} must have 3 dimensions {axes}, got {tuple(value.shape)}")
    if value.dtype not in STATE_DTYPES:
        raise TypeError(f"{name} must be one of {list(STATE_DTYPES)}, got {value.dtype}")


def check_ring(name: str, value: torch.Tensor, like: torch.Tensor | None = None) -> None:
    """Raise unless `value` is a ring of points [S, R, D], like another one if that is given.

    Raises:
        TypeError: not a tensor, or of another type.
        ValueError: another shape, device or last stride.
    """
    if like is None:
        check_floats(name, value, "[S, R, D] (slots, ring, flattened size)")
    else:
        check_tensor(name, value, like.shape, "[S, R, D]", like.dtype, like.device)
    # updated in place, so that a copy would not do
    if value.stride(2) != 1 and value.shape[2] > 1:
        raise ValueError(
            f"{name} must have stride 1 in its last dimension, got strides {value.stride()}; use "
            ".contiguous()"
        )


def check_states(
    x: torch.Tensor,
    x0: torch.Tensor,
    max_length: int,
    name: str,
    table: torch.Tensor,
    order: int,
) -> None:
    """Raise unless both rings fit C [N] of order K, and hold max_length new points (`name`).

    The other tables fit C since they were made.
    """
    check_ring("x", x)
    check_ring("x0", x0, like=x)
    check_tensor("coefficients.C", table, table.shape, "[N]", x.dtype, x.device)
    needed = max_length + order
    if x.shape[1] < needed:
        raise ValueError(
            f"x must hold at least {needed} = {name} + K points per slot (its second dimension), "
            f"got {x.shape[1]}"
        )


def check_noise(
    z: torch.Tensor | None,
    seeds: torch.Tensor | None,
    shape: tuple[int, ...],
    axes: str,
    num_windows: int,
    device: torch.device,
) -> None:
    """Raise unless at most one of z, of this shape, and int64 seeds [A] is given."""
    if z is not None:
        if seeds is not None:
            raise ValueError("give either z (explicit noise) or seeds (from the counter), not both")
        check_tensor("z", z, shape, axes, None, device)
    elif seeds is not None:
        check_tensor("seeds", seeds, (num_windows,), "[A]", torch.int64, device)


def with_unit_stride(rows: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or a copy where the elements of a row do not lie side by side.

    Kernels read a row in 16-byte pieces. A model may return a transposed or expanded tensor; read
    element by element it would cost more than this copy.
    """
    return rows if rows.stride(-1) == 1 else rows.contiguous()
