"""Sliding windows: which nodes of which samples the next round evaluates."""

from __future__ import annotations

from ctd_engine import _checks, _ext
from ctd_engine.scheduling.plan import Finished, RoundPlan, Scheduler
from ctd_engine.scheduling.python import PyWindowScheduler
from ctd_engine.scheduling.sizes import checked_sizes

__all__ = ["Finished", "RoundPlan", "Scheduler", "make_scheduler"]

BACKENDS = ("cpp", "python")


def make_scheduler(
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
    backend: str | None = None,
) -> Scheduler:
    """A window scheduler: the C++ extension's, or its Python twin, which decides alike.

    Args:
        num_samples, num_nodes, window_size, max_rows, num_slots, first_length, max_rounds,
            lockstep, window_ratio, first_window, far_stride: see `PyWindowScheduler`;
            `first_window` is `window_size` by default.
        backend: "cpp", "python", or None for the extension when it is there.

    Raises:
        ValueError: a size is out of range, or the sizes do not fit together.
        RuntimeError: "cpp" was asked for and cannot be loaded.
    """
    sizes = checked_sizes(
        num_samples=num_samples,
        num_nodes=num_nodes,
        window_size=window_size,
        max_rows=max_rows,
        num_slots=num_slots,
        first_length=first_length,
        max_rounds=max_rounds,
        lockstep=lockstep,
        window_ratio=window_ratio,
        first_window=first_window,
        far_stride=far_stride,
    )
    if backend is not None:
        _checks.require_choice("backend", backend, BACKENDS)
    extension = None if backend == "python" else _ext.load(required=backend == "cpp")
    if extension is None:
        return PyWindowScheduler(**sizes)
    from ctd_engine.scheduling.cpp import CppWindowScheduler

    return CppWindowScheduler(extension, sizes)
