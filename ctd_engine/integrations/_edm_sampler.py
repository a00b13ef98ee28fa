"""EDM's sampler as a table, and EDM's networks in a sampler. Public as `integrations.edm`'s."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ctd_engine import _checks
from ctd_engine._table import SolverTable
from ctd_engine.integrations._churn_solvers import churned, heun
from ctd_engine.integrations._nodes import require_levels
from ctd_engine.sampler import ParallelSampler
from ctd_engine.schedules import karras

__all__ = ["heun_table", "sampler"]


def heun_table(
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    *,
    round_sigma: Callable[[Tensor], Tensor] | None = None,
    clip_x0: float | None = None,
) -> SolverTable:
    """EDM's sampler (Karras et al. 2022, arXiv 2206.00364, Alg. 2; Alg. 1 without churn).

    For a network that returns the denoised image and is told sigma. Node 2i is x_hat of step i, the
    state after its noise was raised, and node 2i + 1 its Euler prediction: N = 2 num_steps - 1. The
    noise of step i + 1 is that of node 2i + 1. The first step's is part of the start:
    `initial_scale` includes it, and an `x_init` has to have it already (deviation
    sqrt(t_hat² - t²) S_noise beside the deviation t of the latents; t_hat is `table.sigma[0]`).

    Args:
        num_steps: N of the paper.
        sigma_min, sigma_max, rho: levels by eq. 5, and 0 at the end.
        S_churn, S_min, S_max, S_noise: noise added in levels from S_min to S_max; S_churn = 0 is
            the deterministic sampler.
        round_sigma: the network's, levels -> levels that it knows; None keeps all.
        clip_x0: clip the denoised image to [-clip_x0, clip_x0]; None does not.

    Raises:
        TypeError, ValueError: an argument is wrong, or round_sigma makes two levels equal.
    """
    sigmas = karras(sigma_min, sigma_max, rho).grid(num_steps).sigma
    if round_sigma is not None:
        # the last one is 0, which is no level of the network
        sigmas = torch.cat([_rounded(round_sigma, sigmas[:-1]), sigmas[-1:]])
    levels = require_levels("noise levels of num_steps, after round_sigma,", sigmas.tolist())

    def rounded(hats: list[float]) -> list[float]:
        if round_sigma is None:
            return hats
        values: list[float] = _rounded(
            round_sigma, torch.tensor(hats, dtype=torch.float64)
        ).tolist()
        return values

    names = ("S_churn", "S_min", "S_max", "S_noise")
    return heun(churned(levels, S_churn, S_min, S_max, S_noise, names, rounded)).table(0.0, clip_x0)


def _rounded(round_sigma: Callable[[Tensor], Tensor], sigmas: Tensor) -> Tensor:
    values = torch.as_tensor(round_sigma(sigmas)).detach().to("cpu", torch.float64)
    if values.shape != sigmas.shape:
        raise ValueError(
            f"round_sigma must keep the shape {tuple(sigmas.shape)}, got {tuple(values.shape)}"
        )
    return values


class _Network(nn.Module):
    """EDM's call in ours: `net(x, sigma, class_labels, **others)`."""

    def __init__(self, net: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, **others: Any
    ) -> Tensor:
        # one dtype for a network that does not cast, but half precision would round levels
        told = sigma.to(torch.promote_types(x.dtype, torch.float32))
        return self.net(x, told, class_labels, **others)


def sampler(
    net: Callable[..., Tensor],
    *,
    shape: Sequence[int] | None = None,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    clip_x0: float | None = None,
    dtype: torch.dtype = torch.float64,
    model_dtype: torch.dtype | None = None,
    null_cond: Mapping[str, Any] | None = None,
    **options: Any,
) -> ParallelSampler:
    """A `ParallelSampler` for a network with EDM's call, `net(x, sigma, class_labels)`.

    `sampler(net).sample(4, cond={"class_labels": labels}, guidance_scale=2.0)` samples with labels
    [4, label_dim], one row per sample, and guidance. The levels are kept within `net.sigma_min` and
    `net.sigma_max` and rounded by `net.round_sigma`, as in EDM, where the network has them.

    Args:
        net: returns the denoised image of x [R, C, H, W] at sigma [R].
        shape: of one image; None is that of `net.img_channels` and `net.img_resolution`.
        num_steps, sigma_min, sigma_max, rho, S_churn, S_min, S_max, S_noise, clip_x0: as in
            `heun_table`.
        dtype: of the state; float64 is EDM's own choice.
        model_dtype: of the network's input; None is the dtype of its parameters, at least float32,
            and `dtype` for one without parameters. sigma has it too, but stays in float32 beside
            half precision: EDM's networks cast both themselves.
        null_cond: what "no condition" is, for guidance; None is a label of zeros where the network
            has a `label_dim`.
        **options: further arguments of `ParallelSampler`: window_size, tolerance, device and so on.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    if not callable(net):
        raise TypeError(
            f"net must be callable as net(x, sigma, class_labels), got {type(net).__name__}"
        )
    if shape is None:
        channels, size = (getattr(net, name, None) for name in ("img_channels", "img_resolution"))
        if channels is None or size is None:
            raise ValueError(
                "shape is needed: net has no img_channels and img_resolution to tell it; pass "
                "shape=(channels, height, width)"
            )
        shape = (int(channels), int(size), int(size))
    sigma_min = _checks.require_float("sigma_min", sigma_min, above=0.0)
    sigma_max = _checks.require_float("sigma_max", sigma_max, above=0.0)
    steps = heun_table(
        num_steps,
        max(sigma_min, float(getattr(net, "sigma_min", 0.0))),
        min(sigma_max, float(getattr(net, "sigma_max", math.inf))),
        rho,
        S_churn,
        S_min,
        S_max,
        S_noise,
        round_sigma=getattr(net, "round_sigma", None),
        clip_x0=clip_x0,
    )
    num_labels = int(getattr(net, "label_dim", 0) or 0)
    if null_cond is None and num_labels > 0:
        null_cond = {"class_labels": torch.zeros(1, num_labels)}
    network = _Network(net)
    return ParallelSampler(
        # only a module tells when its weights, which a recording reads, have moved
        network if isinstance(net, nn.Module) else network.forward,
        shape=shape,
        solver=steps,
        dtype=dtype,
        model_dtype=model_dtype or _input_dtype(net, dtype),
        null_cond=null_cond,
        **options,
    )


def _input_dtype(net: Callable[..., Tensor], dtype: torch.dtype) -> torch.dtype:
    weights = net.parameters() if isinstance(net, nn.Module) else ()
    for weight in weights:
        if weight.is_floating_point():
            # at sigma = 80 half precision would leave few digits of the image
            return torch.promote_types(weight.dtype, torch.float32)
    return dtype
