"""Contrastive reduction, forward and backward, each in one pass over the [K, n, D] tensors.

Forward: three reads per element, a gap per draw and block, then one small ordered reduction.
Backward: three reads, and one write for every output that needs a gradient. Accumulation in fp32,
or fp64 if any input is fp64. Nothing of size [K, n, D] is kept but the inputs. No atomics.
"""

import torch
import triton
import triton.language as tl

from ctd_engine.ops import _tuning


@triton.jit
def _gap_fwd_kernel(
    # inputs
    eps_ptr,  # [K, n, D]
    out_alpha_ptr,  # [K, n, D]
    out_beta_ptr,  # [K, n, D]
    b_ptr,  # [K, n], contiguous
    # output
    gap_ptr,  # [K n, parts] sums of (a - c)(2 eps - a - c)
    # sizes
    num_draws,  # n
    num_elements,  # D
    part_elements,  # elements of one part, a multiple of BLOCK_D
    # strides in elements
    stride_eps_k,
    stride_eps_n,
    stride_eps_d,
    stride_alpha_k,
    stride_alpha_n,
    stride_alpha_d,
    stride_beta_k,
    stride_beta_n,
    stride_beta_d,
    # constants
    BLOCK_D: tl.constexpr,
):
    k = (tl.program_id(0) // num_draws).to(tl.int64)
    n = (tl.program_id(0) % num_draws).to(tl.int64)
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    dtype: tl.constexpr = gap_ptr.dtype.element_ty
    b = tl.load(b_ptr + row).to(dtype)
    eps_ptrs = eps_ptr + k * stride_eps_k + n * stride_eps_n
    alpha_ptrs = out_alpha_ptr + k * stride_alpha_k + n * stride_alpha_n
    beta_ptrs = out_beta_ptr + k * stride_beta_k + n * stride_beta_n
    total = tl.zeros((BLOCK_D,), dtype=dtype)
    for first in range(0, part_elements, BLOCK_D):
        offs_d = part * part_elements + first + tl.arange(0, BLOCK_D)
        mask_d = offs_d < num_elements
        eps = tl.load(eps_ptrs + offs_d * stride_eps_d, mask=mask_d, other=0.0).to(dtype)
        a = tl.load(alpha_ptrs + offs_d * stride_alpha_d, mask=mask_d, other=0.0).to(dtype)
        c = b * tl.load(beta_ptrs + offs_d * stride_beta_d, mask=mask_d, other=0.0).to(dtype)
        # the two squares are nearly equal; their difference in factors does not cancel
        total += (a - c) * (2.0 * eps - a - c)
    tl.store(gap_ptr + row * tl.num_programs(1) + part, tl.sum(total, axis=0))


@triton.jit
def _loss_fwd_kernel(
    # inputs
    gap_ptr,  # [K, n, parts]
    weight_ptr,  # [K, n], contiguous
    y_ptr,  # [K]
    # outputs
    loss_ptr,  # [K]
    delta_ptr,  # [K]
    # sizes
    num_draws,  # n
    num_parts,
):
    k = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = loss_ptr.dtype.element_ty
    total = tl.zeros((), dtype=dtype)
    for n in range(num_draws):
        gap = tl.zeros((), dtype=dtype)
        for part in range(num_parts):
            gap += tl.load(gap_ptr + (k * num_draws + n) * num_parts + part)
        total += tl.load(weight_ptr + k * num_draws + n).to(dtype) * gap
    delta = -0.5 * total / num_draws
    u = tl.load(y_ptr + k).to(dtype) * delta
    # softplus(u) = max(u, 0) + log(1 + e^-|u|); a maximum would drop NaN
    size = tl.exp(-tl.abs(u))
    # log(1 + s) with the digits of a small s (Kahan)
    one_plus = 1.0 + size
    residue = size - (one_plus - 1.0)
    log_1p = tl.log(one_plus) + residue / one_plus
    tl.store(loss_ptr + k, tl.where(u > 0, u, 0.0 * u) + log_1p)
    tl.store(delta_ptr + k, delta)


@triton.jit
def _reduction_bwd_kernel(
    # inputs
    grad_loss_ptr,  # [K]
    grad_delta_ptr,  # [K]
    delta_ptr,  # [K]
    y_ptr,  # [K]
    eps_ptr,  # [K, n, D]
    out_alpha_ptr,  # [K, n, D]
    out_beta_ptr,  # [K, n, D]
    weight_ptr,  # [K, n], contiguous
    b_ptr,  # [K, n], contiguous
    # outputs, contiguous
    grad_alpha_ptr,  # [K, n, D], written if NEEDS_ALPHA
    grad_beta_ptr,  # [K, n, D], written if NEEDS_BETA
    # sizes
    num_draws,  # n
    num_elements,  # D
    # strides in elements
    stride_eps_k,
    stride_eps_n,
    stride_eps_d,
    stride_alpha_k,
    stride_alpha_n,
    stride_alpha_d,
    stride_beta_k,
    stride_beta_n,
    stride_beta_d,
    # constants
    NEEDS_ALPHA: tl.constexpr,
    NEEDS_BETA: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offs_d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = offs_d < num_elements
    k = (tl.program_id(0) // num_draws).to(tl.int64)
    n = (tl.program_id(0) % num_draws).to(tl.int64)
    dtype: tl.constexpr = delta_ptr.dtype.element_ty
    y = tl.load(y_ptr + k).to(dtype)
    u = y * tl.load(delta_ptr + k)
    # sigmoid without overflow: e^-|u| is at most 1
    size = tl.exp(-tl.abs(u))
    sigmoid = tl.where(u > 0, 1.0, size) / (1.0 + size)
    s = y * sigmoid * tl.load(grad_loss_ptr + k) + tl.load(grad_delta_ptr + k)
    scale = s * tl.load(weight_ptr + row).to(dtype) / num_draws
    eps_ptrs = eps_ptr + k * stride_eps_k + n * stride_eps_n + offs_d * stride_eps_d
    eps = tl.load(eps_ptrs, mask=mask_d, other=0.0).to(dtype)
    if NEEDS_ALPHA:
        alpha_ptrs = out_alpha_ptr + k * stride_alpha_k + n * stride_alpha_n
        a = tl.load(alpha_ptrs + offs_d * stride_alpha_d, mask=mask_d, other=0.0).to(dtype)
        grad = -scale * (eps - a)
        grad_ptrs = grad_alpha_ptr + row * num_elements + offs_d
        tl.store(grad_ptrs, grad.to(grad_alpha_ptr.dtype.element_ty), mask=mask_d)
    if NEEDS_BETA:
        b = tl.load(b_ptr + row).to(dtype)
        beta_ptrs = out_beta_ptr + k * stride_beta_k + n * stride_beta_n
        c = b * tl.load(beta_ptrs + offs_d * stride_beta_d, mask=mask_d, other=0.0).to(dtype)
        grad = scale * b * (eps - c)
        grad_ptrs = grad_beta_ptr + row * num_elements + offs_d
        tl.store(grad_ptrs, grad.to(grad_beta_ptr.dtype.element_ty), mask=mask_d)


def forward(
    eps: torch.Tensor,
    out_alpha: torch.Tensor,
    out_beta: torch.Tensor,
    weight: torch.Tensor,
    b: torch.Tensor,
    y: torch.Tensor,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the forward pass: (loss [K], delta [K]) in `dtype`."""
    num_points, num_draws, num_elements = eps.shape
    num_rows = num_points * num_draws
    loss, delta = (torch.empty(num_points, dtype=dtype, device=eps.device) for _ in range(2))
    if num_points == 0:
        return loss, delta
    parts, blocks = _tuning.reduction_blocks(num_rows, num_elements)
    part_blocks = _tuning.ceil_div(_tuning.ceil_div(num_elements, blocks.elements), parts)
    gap = torch.empty(num_rows, parts, dtype=dtype, device=eps.device)
    _gap_fwd_kernel[(num_rows, parts)](
        eps_ptr=eps,
        out_alpha_ptr=out_alpha,
        out_beta_ptr=out_beta,
        b_ptr=b.contiguous(),
        gap_ptr=gap,
        num_draws=num_draws,
        num_elements=num_elements,
        part_elements=part_blocks * blocks.elements,
        **_strides(eps, out_alpha, out_beta),
        BLOCK_D=blocks.elements,
        num_warps=blocks.num_warps,
    )
    _loss_fwd_kernel[(num_points,)](
        gap_ptr=gap,
        weight_ptr=weight.contiguous(),
        y_ptr=y.contiguous(),
        loss_ptr=loss,
        delta_ptr=delta,
        num_draws=num_draws,
        num_parts=parts,
        num_warps=1,
    )
    return loss, delta


def backward(
    grad_loss: torch.Tensor,
    grad_delta: torch.Tensor,
    delta: torch.Tensor,
    eps: torch.Tensor,
    out_alpha: torch.Tensor,
    out_beta: torch.Tensor,
    weight: torch.Tensor,
    b: torch.Tensor,
    y: torch.Tensor,
    needs_alpha: bool,
    needs_beta: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the backward pass; a gradient that is not needed comes back empty."""
    num_points, num_draws, num_elements = eps.shape
    grad_alpha, grad_beta = (
        torch.empty(out.shape if needed else (0,), dtype=out.dtype, device=out.device)
        for out, needed in ((out_alpha, needs_alpha), (out_beta, needs_beta))
    )
    if eps.numel() == 0 or not (needs_alpha or needs_beta):
        return grad_alpha, grad_beta
    blocks = _tuning.elementwise_blocks(num_elements)
    grid = (num_points * num_draws, _tuning.ceil_div(num_elements, blocks.elements))
    _reduction_bwd_kernel[grid](
        grad_loss_ptr=grad_loss.contiguous(),
        grad_delta_ptr=grad_delta.contiguous(),
        delta_ptr=delta,
        y_ptr=y.contiguous(),
        eps_ptr=eps,
        out_alpha_ptr=out_alpha,
        out_beta_ptr=out_beta,
        weight_ptr=weight.contiguous(),
        b_ptr=b.contiguous(),
        grad_alpha_ptr=grad_alpha,
        grad_beta_ptr=grad_beta,
        num_draws=num_draws,
        num_elements=num_elements,
        **_strides(eps, out_alpha, out_beta),
        NEEDS_ALPHA=needs_alpha,
        NEEDS_BETA=needs_beta,
        BLOCK_D=blocks.elements,
        num_warps=blocks.num_warps,
    )
    return grad_alpha, grad_beta


def _strides(eps, out_alpha, out_beta):
    return {
        f"stride_{name}_{axis}": tensor.stride(i)
        for name, tensor in (("eps", eps), ("alpha", out_alpha), ("beta", out_beta))
        for i, axis in enumerate("knd")
    }
