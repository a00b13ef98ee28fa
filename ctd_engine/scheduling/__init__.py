"""Sliding windows: which nodes of which samples the next round evaluates."""

from __future__ import annotations

from ctd_engine import _checks, _ext
from ctd_engine.scheduling.plan import Finished, RoundPlan, Scheduler
from ctd_engine.scheduling.python import PyWindowScheduler

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
    backend: str | None = None,
) -> Scheduler:
    """A window scheduler: the C++ extension's, or its Python twin, which decides alike.

    Args:
        num_samples, num_nodes, window_size, max_rows, num_slots, first_length, max_rounds,
            lockstep: see `PyWindowScheduler`.
        backend: "cpp", "python", or None for the extension when it is there.

    Raises:
        ValueError: a size is not positive, or the sizes do not fit together.
        RuntimeError: "cpp" was asked for and cannot be loaded.
    """
    sizes = {
        "num_samples": num_samples,
        "num_nodes": num_nodes,
        "window_size": window_size,
        "max_rows": max_rows,
        "num_slots": num_slots,
        "first_length": first_length,
        "max_rounds": max_rounds,
    }
    for name, value in sizes.items():
        sizes[name] = _checks.require_int(name, value, minimum=1)
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
    if backend is not None:
        _checks.require_choice("backend", backend, BACKENDS)
    if backend == "python":
        return PyWindowScheduler(**sizes, lockstep=bool(lockstep))
    extension = _ext.load(required=backend == "cpp")
    if extension is None:
        return PyWindowScheduler(**sizes, lockstep=bool(lockstep))
    from ctd_engine.scheduling.cpp import CppWindowScheduler

    return CppWindowScheduler(extension, **sizes, lockstep=bool(lockstep))
