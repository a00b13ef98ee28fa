"""The fused reduction as operators of torch: traceable, differentiable, and safe to run twice."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor

__all__ = ["contrastive_reduction_fused", "working_dtype"]


def working_dtype(eps: Tensor, out_alpha: Tensor, out_beta: Tensor) -> torch.dtype:
    """fp32, or fp64 if any of the three is fp64."""
    dtypes = (t.dtype for t in (out_alpha, out_beta))
    return torch.promote_types(reduce(torch.promote_types, dtypes, eps.dtype), torch.float32)


@torch.library.custom_op("ctd_engine::contrastive_reduction", mutates_args=())
def contrastive_reduction_fused(
    eps: Tensor, out_alpha: Tensor, out_beta: Tensor, weight: Tensor, b: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """loss and delta [K], from the Triton kernels."""
    from ctd_engine.ops.contrastive_reduction import kernel

    dtype = working_dtype(eps, out_alpha, out_beta)
    return kernel.forward(eps, out_alpha, out_beta, weight, b, y, dtype)


@torch.library.custom_op("ctd_engine::contrastive_reduction_backward", mutates_args=())
def _backward_fused(
    grad_loss: Tensor,
    grad_delta: Tensor,
    delta: Tensor,
    eps: Tensor,
    out_alpha: Tensor,
    out_beta: Tensor,
    weight: Tensor,
    b: Tensor,
    y: Tensor,
    needs_alpha: bool,
    needs_beta: bool,
) -> tuple[Tensor, Tensor]:
    from ctd_engine.ops.contrastive_reduction import kernel

    inputs = (eps, out_alpha, out_beta, weight, b, y)
    return kernel.backward(grad_loss, grad_delta, delta, *inputs, needs_alpha, needs_beta)


@contrastive_reduction_fused.register_fake
def _(
    eps: Tensor, out_alpha: Tensor, out_beta: Tensor, weight: Tensor, b: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    dtype = working_dtype(eps, out_alpha, out_beta)
    loss = eps.new_empty(eps.shape[0], dtype=dtype)
    return loss, torch.empty_like(loss)


@_backward_fused.register_fake
def _(
    grad_loss: Tensor,
    grad_delta: Tensor,
    delta: Tensor,
    eps: Tensor,
    out_alpha: Tensor,
    out_beta: Tensor,
    weight: Tensor,
    b: Tensor,
    y: Tensor,
    needs_alpha: bool,
    needs_beta: bool,
) -> tuple[Tensor, Tensor]:
    return (
        out_alpha.new_empty(out_alpha.shape if needs_alpha else (0,)),
        out_beta.new_empty(out_beta.shape if needs_beta else (0,)),
    )


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, grad_loss: Tensor, grad_delta: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, delta = ctx.saved_tensors
    _, needs_alpha, needs_beta, *_ = ctx.needs_input_grad
    grad_alpha, grad_beta = _backward_fused(
        grad_loss, grad_delta, delta, *inputs, needs_alpha, needs_beta
    )
    return (
        None,
        grad_alpha if needs_alpha else None,
        grad_beta if needs_beta else None,
        None,
        None,
        None,
    )


contrastive_reduction_fused.register_autograd(_backward, setup_context=_save)
