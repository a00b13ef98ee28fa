"""First guess of the points that enter a window."""

from __future__ import annotations

import torch

from ctd_engine.ops import _checks
from ctd_engine.ops._dispatch import resolve
from ctd_engine.ops.picard_update import Coefficients
from ctd_engine.ops.predict_guess.reference import predict_guess_reference_

__all__ = ["predict_guess_"]


def predict_guess_(
    x: torch.Tensor,
    x0: torch.Tensor,
    slot: torch.Tensor,
    known: torch.Tensor,
    count: torch.Tensor,
    max_count: int,
    coefficients: Coefficients,
    *,
    z: torch.Tensor | None = None,
    seeds: torch.Tensor | None = None,
    backend: str | None = None,
) -> None:
    """Write nodes known + 1 .. known + count of every slot into x, without a model call.

    The x0 estimate of the last evaluated node, known - 1, is held and the solver's recurrence run
    from node `known` with the true noise of every step. Before the first model call, at known = 0,
    there is no estimate and 0 is held.

    Args:
        x, x0: rings [S, R, D], R at least max_count + K.
        slot, known, count: int64 [A]; an entry with count 0 is left alone.
        max_count: the largest count, known to the host.
        coefficients: the solver, in the dtype of x.
        z: explicit standard normal noise of nodes known + j, [A, max_count, D].
        seeds: int64 [A], instead of z: noise from the counter. With neither there is none.
        backend: None (Triton on CUDA, C++ on the CPU, else the reference), "reference", "cpp" or
            "triton".

    Raises:
        TypeError: a tensor of another type.
        ValueError: shapes, strides or devices do not fit together, z and seeds are both given, or
            the backend is unknown.
        RuntimeError: the named backend cannot run on these tensors.
    """
    _checks.check_states(x, x0, max_count, "max_count", coefficients.C, coefficients.order)
    num_windows, device = slot.shape[0], x.device
    indices = {"slot": slot, "known": known, "count": count}
    _checks.check_indices(num_windows, "[A]", device, indices)
    shape = (num_windows, max_count, x.shape[2])
    _checks.check_noise(z, seeds, shape, "[A, max_count, D]", num_windows, device)
    arguments = (x, x0, slot, known, count, max_count, coefficients)
    chosen = resolve(backend, x, has_cpp=True)
    if chosen == "triton":
        from ctd_engine.ops.predict_guess.kernel import predict_guess_triton

        predict_guess_triton(*arguments, z=z, seeds=seeds)
    elif chosen == "cpp":
        from ctd_engine.ops.predict_guess.cpp import predict_guess_cpp

        predict_guess_cpp(*arguments, z=z, seeds=seeds)
    else:
        predict_guess_reference_(*arguments, z=z, seeds=seeds)
