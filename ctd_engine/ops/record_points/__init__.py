"""A record of the points that a run's windows have held."""

from __future__ import annotations

import torch

from ctd_engine.ops import _checks
from ctd_engine.ops._dispatch import resolve
from ctd_engine.ops.record_points.reference import record_points_reference_

__all__ = ["record_points_"]


def record_points_(
    record: torch.Tensor,
    ring: torch.Tensor,
    slot: torch.Tensor,
    sample: torch.Tensor,
    first: torch.Tensor,
    length: torch.Tensor,
    max_length: int,
    *,
    spare: int,
    backend: str | None = None,
) -> None:
    """Copy nodes first .. first + length - 1 of every slot into the record of its sample.

    Args:
        record: [B, M, D] in the dtype of the ring; node i of sample b lies at [b, i].
        ring: [S, R, D]; node i of a slot lies at ring position i mod R.
        slot, sample, first, length: int64 [A].
        max_length: the largest length.
        spare: a node of the record that may be overwritten with numbers of no meaning.
        backend: None or "cpp" (the C++ kernel on the CPU, PyTorch elsewhere), "reference" or
            "triton", which are PyTorch: the copies are few and need no kernel of their own.

    Raises:
        TypeError: a tensor of another type.
        ValueError: shapes, strides or devices do not fit together, or the backend is unknown.
    """
    _checks.check_ring("ring", ring)
    _checks.check_ring("record", record)
    _checks.check_tensor(
        "record", record, (*record.shape[:2], ring.shape[2]), "[B, M, D]", ring.dtype, ring.device
    )
    indices = {"slot": slot, "sample": sample, "first": first, "length": length}
    _checks.check_indices(slot.shape[0], "[A]", ring.device, indices)
    # a Triton run records with PyTorch
    chosen = "reference" if backend == "triton" else resolve(backend, ring, has_cpp=True)
    if chosen == "cpp":
        from ctd_engine.ops.record_points.cpp import record_points_cpp

        record_points_cpp(record, ring, slot, sample, first, length)
    else:
        record_points_reference_(record, ring, slot, sample, first, length, max_length, spare)
