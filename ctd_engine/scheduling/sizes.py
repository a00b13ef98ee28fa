"""The sizes that every implementation of the window scheduler takes, checked in one place."""

from __future__ import annotations

from typing import TypedDict

from ctd_engine import _checks

__all__ = ["MAX_WINDOW_RATIO", "Sizes", "checked_sizes", "ratio_of"]

# in units of 1/256: no window is longer than 256 times the smoothed advance
UNIT = 256
MAX_WINDOW_RATIO = 256 * UNIT


class Sizes(TypedDict):
    """Arguments of `PyWindowScheduler`, which documents them."""

    num_samples: int
    num_nodes: int
    window_size: int
    max_rows: int
    num_slots: int
    first_length: int
    max_rounds: int
    lockstep: bool
    window_ratio: int
    first_window: int
    far_stride: int


def checked_sizes(
    *,
    num_samples: int,
    num_nodes: int,
    window_size: int,
    max_rows: int,
    num_slots: int,
    first_length: int,
    max_rounds: int,
    lockstep: bool = False,
    window_ratio: int = 0,
    first_window: int | None = None,
    far_stride: int = 1,
) -> Sizes:
    """The same, as Python integers; `first_window` is `window_size` by default.

    Raises:
        TypeError: a size is not an integer.
        ValueError: a size is out of range, or the sizes do not fit together.
    """
    sizes = Sizes(
        num_samples=_checks.require_int("num_samples", num_samples, minimum=1),
        num_nodes=_checks.require_int("num_nodes", num_nodes, minimum=1),
        window_size=_checks.require_int("window_size", window_size, minimum=1),
        max_rows=_checks.require_int("max_rows", max_rows, minimum=1),
        num_slots=_checks.require_int("num_slots", num_slots, minimum=1),
        first_length=_checks.require_int("first_length", first_length, minimum=1),
        max_rounds=_checks.require_int("max_rounds", max_rounds, minimum=1),
        lockstep=bool(lockstep),
        window_ratio=_checks.require_int("window_ratio", window_ratio),
        first_window=_checks.require_int(
            "first_window", window_size if first_window is None else first_window, minimum=1
        ),
        far_stride=_checks.require_int("far_stride", far_stride, minimum=1),
    )
    if max_rows < num_slots:
        raise ValueError(
            f"max_rows must be at least num_slots = {num_slots}, a row for every active sample, "
            f"got {max_rows}"
        )
    if lockstep and num_slots < num_samples:
        raise ValueError(
            f"lockstep moves all samples together: num_slots must be at least num_samples = "
            f"{num_samples}, got {num_slots}"
        )
    if lockstep and max_rows < num_samples * min(window_size, num_nodes):
        raise ValueError(
            "lockstep needs whole windows: max_rows must be at least num_samples * window_size = "
            f"{num_samples * min(window_size, num_nodes)}, got {max_rows}"
        )
    if window_ratio != 0 and not 256 <= window_ratio <= MAX_WINDOW_RATIO:
        raise ValueError(
            "window_ratio must be 0, or from 256 (once the smoothed advance) to "
            f"{MAX_WINDOW_RATIO}, got {window_ratio}"
        )
    if sizes["first_window"] > window_size:
        raise ValueError(
            f"first_window must be at most window_size = {window_size}, got {first_window}"
        )
    return sizes


def ratio_of(adaptive_window: float) -> int:
    """The `window_ratio` of windows that are so many times the smoothed advance long.

    Raises:
        TypeError, ValueError: not a number from 1 to 256.
    """
    ratio = _checks.require_float("adaptive_window", adaptive_window, minimum=1.0)
    if ratio > MAX_WINDOW_RATIO // UNIT:
        raise ValueError(f"adaptive_window must be <= {MAX_WINDOW_RATIO // UNIT}, got {ratio:g}")
    return round(UNIT * ratio)
