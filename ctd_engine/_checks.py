"""Checks of user input, with errors that name the argument, the expectation and what came."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

__all__ = ["require_choice", "require_float", "require_int"]


def require_int(name: str, value: object, *, minimum: int | None = None) -> int:
    """`value` as an int, from any integer type but bool."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got bool")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {number}")
    return number


def require_float(
    name: str, value: object, *, minimum: float | None = None, above: float | None = None
) -> float:
    """`value` as a finite float, at least `minimum`, greater than `above`."""
    if isinstance(value, (bool, str)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}") from None
    except OverflowError:
        raise ValueError(f"{name} must be finite as a float, got a larger integer") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be >= {minimum:g}, got {number:g}")
    if above is not None and number <= above:
        raise ValueError(f"{name} must be > {above:g}, got {number:g}")
    return number


def require_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """`value`, one of the names."""
    if not isinstance(value, str) or value not in choices:
        known = ", ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{name} must be one of {known}, got {value!r}")
    return value
