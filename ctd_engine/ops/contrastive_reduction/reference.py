"""The contrastive reduction in plain PyTorch: the specification of every other backend."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["contrastive_reduction_reference"]


def contrastive_reduction_reference(
    eps: Tensor, out_alpha: Tensor, out_beta: Tensor, weight: Tensor, b: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Reduce paired noise predictions to a log ratio and its logistic loss.

    delta_k = -1/2 mean_n w_kn ( |eps_kn - b_kn out_beta_kn|^2 - |eps_kn - out_alpha_kn|^2 )
    loss_k = softplus(y_k delta_k)

    The difference of squares is factored as (a - c) (2 eps - a - c) with a = out_alpha and
    c = b out_beta: the two squares are of size D and nearly equal.
    """
    dtype = reduce(torch.promote_types, (t.dtype for t in (out_alpha, out_beta)), eps.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    eps, out_alpha, out_beta, weight, b, y = (
        t.to(dtype) for t in (eps, out_alpha, out_beta, weight, b, y)
    )
    scaled_beta = b.unsqueeze(-1) * out_beta
    gap = ((out_alpha - scaled_beta) * (2.0 * eps - out_alpha - scaled_beta)).sum(-1)
    delta = -0.5 * (weight * gap).mean(-1)
    # softplus(x) = -logsigmoid(-x), without F.softplus's switch to the identity above 20
    return -logsigmoid(-y * delta), delta
