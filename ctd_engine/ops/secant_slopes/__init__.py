"""Secant slopes of the update: how a node's answer has moved with it, one number per row."""

from __future__ import annotations

import torch

from ctd_engine.ops import _checks
from ctd_engine.ops._dispatch import resolve
from ctd_engine.ops.picard_update import Coefficients, Windows
from ctd_engine.ops.secant_slopes.reference import secant_slopes_reference

__all__ = ["secant_slopes"]


def secant_slopes(
    x: torch.Tensor,
    x0: torch.Tensor,
    change: torch.Tensor,
    m: torch.Tensor,
    windows: Windows,
    coefficients: Coefficients,
    *,
    m_null: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
    backend: str | None = None,
) -> torch.Tensor:
    """Slopes G [rows] for `picard_update_`, from the last two evaluations of every row's node.

    With d the change of x_i between the two and d x0 that of its data prediction, J = <d, d x0> /
    <d, d> and G = sum_k A[i,k] + J sum_k B[i,k], clamped to [0, 1]. To be called before the update,
    which overwrites x0. A row without a pair takes Picard's slope, 1.

    Args:
        x, x0, change: rings [S, R, D] as `picard_update_` has left them: states, the data
            predictions of their last evaluation, and how far they have moved since.
        m: raw outputs [rows, D] of the model at x, any floating-point dtype.
        windows: the round's windows and rows. Nodes before `windows.known` have a pair; without
            it no node has one.
        coefficients: the solver, in the dtype of x.
        m_null, guidance_scale: classifier-free guidance, as in `picard_update_`.
        backend: None (Triton on CUDA, C++ on the CPU, else the reference), "reference", "cpp" or
            "triton".

    Raises:
        TypeError: a tensor of another type.
        ValueError: shapes, strides or devices do not fit together, or the backend is unknown.
        RuntimeError: the named backend cannot run on these tensors.
    """
    c, w = coefficients, windows
    _checks.check_states(x, x0, w.max_length, "max_length", c.C, c.order)
    _checks.check_ring("change", change, like=x)
    rows, device = (len(w.row_slot), x.shape[2]), x.device
    _checks.check_tensor("m", m, rows, "[rows, D]", None, device)
    if m_null is not None:
        _checks.check_tensor("m_null", m_null, rows, "[rows, D]", None, device)
    _checks.check_indices(len(w.slot), "[A]", device, {"windows.slot": w.slot})
    known = w.start if w.known is None else w.known
    implementation = secant_slopes_reference
    chosen = resolve(backend, x, m, has_cpp=True)
    if chosen == "triton":
        from ctd_engine.ops.secant_slopes.kernel import secant_slopes_triton

        implementation = secant_slopes_triton
    elif chosen == "cpp":
        from ctd_engine.ops.secant_slopes.cpp import secant_slopes_cpp

        implementation = secant_slopes_cpp
    return implementation(
        x, x0, change, m, w, known, c, m_null=m_null, guidance_scale=guidance_scale
    )
