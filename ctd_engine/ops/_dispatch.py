"""Which implementation of an op runs. One place, so that a new back-end is added once."""

from __future__ import annotations

__all__ = ["BACKENDS", "resolve"]

BACKENDS = ("reference",)


def resolve(backend: str | None) -> str:
    """The back-end that runs: the reference unless another one is named.

    Raises:
        ValueError: an unknown name.
    """
    if backend is None:
        return "reference"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be None or one of {list(BACKENDS)}, got {backend!r}")
    return backend
