"""Log ratio and logistic loss of contrastive points, from paired noise predictions.

See README.md in this folder for the derivation and the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctd_engine.ops._dispatch import check_name, resolve
from ctd_engine.ops.contrastive_reduction.reference import contrastive_reduction_reference

__all__ = ["contrastive_reduction", "contrastive_reduction_reference"]


def contrastive_reduction(
    eps: Tensor,
    out_alpha: Tensor,
    out_beta: Tensor,
    weight: Tensor,
    b: Tensor,
    y: Tensor,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Reduce paired noise predictions to a log ratio per point and its logistic loss.

    delta_k = -1/2 mean_n w_kn ( |eps_kn - b_kn out_beta_kn|^2 - |eps_kn - out_alpha_kn|^2 )
    loss_k = softplus(y_k delta_k)

    Arithmetic is in at least fp32. Differentiable in `out_alpha` and `out_beta`; the reference in
    all but y.

    Args:
        eps: noise that was added, `[K, n, D]`.
        out_alpha: the model's noise prediction at log-SNR alpha_n, `[K, n, D]`.
        out_beta: the model's noise prediction at log-SNR beta_n, `[K, n, D]`.
        weight: importance weights w, `[K, n]`.
        b: factors b, `[K, n]`.
        y: labels, `[K]`; +1 for a data point, -1 for a point with noise added.
        backend: None (Triton for CUDA tensors), "reference" or "triton".

    Returns:
        `(loss, delta)`, both `[K]`, in nats, in fp32 or fp64.

    Raises:
        TypeError: if an argument is not a floating-point tensor (`y` may be an integer tensor).
        ValueError: if shapes or devices do not fit, a point has no draws, `y` holds anything but
            +1 and -1 (looked at on the CPU only, and not under torch.compile), or the backend is
            unknown.
        RuntimeError: "triton" cannot run on these tensors, or is asked for another gradient.
    """
    _check(eps, out_alpha, out_beta, weight, b, y)
    needs_more = any(t.requires_grad for t in (eps, weight, b, y))
    if needs_more and backend not in (None, "reference"):
        raise RuntimeError(
            f'backend "{backend}" has gradients for out_alpha and out_beta only, and eps, weight, '
            'b or y requires one; detach it or use backend="reference"'
        )
    arguments = (eps, out_alpha, out_beta, weight, b, y)
    if not needs_more and resolve(backend, eps) == "triton":
        from ctd_engine.ops.contrastive_reduction.fused import contrastive_reduction_fused

        loss, delta = contrastive_reduction_fused(*arguments)
        return loss, delta
    check_name(backend)
    return contrastive_reduction_reference(*arguments)


def _check(
    eps: Tensor, out_alpha: Tensor, out_beta: Tensor, weight: Tensor, b: Tensor, y: Tensor
) -> None:
    named = {
        "eps": eps,
        "out_alpha": out_alpha,
        "out_beta": out_beta,
        "weight": weight,
        "b": b,
        "y": y,
    }
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if not value.is_floating_point() and (name != "y" or value.is_complex()):
            raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
        if value.device != eps.device:
            raise ValueError(
                f"{name} must be on the device of eps, {eps.device}, got {value.device}"
            )
    if eps.dim() != 3:
        raise ValueError(
            f"eps must have 3 dimensions [K, n, D] (points, draws, flattened size), got "
            f"{tuple(eps.shape)}; flatten the sample's own dimensions into the last one"
        )
    if eps.shape[1] == 0:
        raise ValueError(f"eps must hold at least one draw per point, got shape {tuple(eps.shape)}")
    expected = {
        "out_alpha": (eps.shape, "[K, n, D]"),
        "out_beta": (eps.shape, "[K, n, D]"),
        "weight": (eps.shape[:2], "[K, n]"),
        "b": (eps.shape[:2], "[K, n]"),
        "y": (eps.shape[:1], "[K]"),
    }
    for name, (shape, letters) in expected.items():
        if named[name].shape != shape:
            raise ValueError(
                f"{name} must have shape {tuple(shape)} = {letters} to fit eps, "
                f"got {tuple(named[name].shape)}"
            )
    # the value decides, which a traced graph cannot hold and another device would wait for
    can_look = y.device.type == "cpu" and not torch.compiler.is_compiling()
    if can_look and not bool((y.abs() == 1).all()):
        raise ValueError("y must hold only +1 (data) and -1 (noise added), got other values")
