"""The steps of DPM-Solver, DPM-Solver++ and their SDE forms, orders 1 to 3.

Lu et al. 2022 (arXiv 2206.00927 and 2211.01095), with their letters: lambda = log(alpha / sigma),
h = lambda_t - lambda_s0, and s0, s1, s2 the levels of this node and the ones before. "dpmsolver"
integrates the noise prediction, "dpmsolver++" the data prediction; the former becomes the latter by
eps = (x - alpha x0) / sigma. Every number is computed as diffusers does, in its precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ctd_engine.integrations.diffusers._nodes import Number

__all__ = ["in_x0", "log_ratio", "multistep", "usable_order"]

Level = tuple[Number, Number]
# up to so many steps the last ones are of lower order
FEW_STEPS = 15


def multistep(config: Any, levels: list[Level]) -> Iterator[dict[str, Any]]:
    """a, b, c of every step between levels (alpha, sigma), N + 1 of them."""
    lambdas = [log_ratio(*level) for level in levels]
    for i in range(len(levels) - 1):
        order = usable_order(lambdas, i, _order(config, i, len(levels) - 1))
        if order == 0:
            yield dict(a=[1.0], b=[0.0], c=0.0)
            continue
        h = lambdas[i + 1] - lambdas[i]
        kept, gains, c = _gains(config, order, levels[i], levels[i + 1], h)
        weights = _weights(gains, h, [lambdas[i - k] for k in range(order)])
        if config.algorithm_type.endswith("++"):
            yield dict(a=[kept], b=weights, c=c)
        else:
            a, b = in_x0(config, kept, weights, [levels[i - k] for k in range(order)])
            yield dict(a=a, b=b, c=c)


def log_ratio(alpha: Number, sigma: Number) -> Tensor:
    """lambda, infinite where sigma or alpha is 0."""
    return torch.log(torch.as_tensor(alpha)) - torch.log(torch.as_tensor(sigma))


def usable_order(lambdas: list[Tensor], i: int, order: int) -> int:
    """The order of step i, less what lies at repeated levels; 0 for a step of no length.

    Schedulers repeat a timestep where there are as many steps as in training; diffusers then
    divides by the length 0.
    """
    if float(lambdas[i + 1]) == float(lambdas[i]):
        return 0
    for k in range(1, order):
        if float(lambdas[i - k]) == float(lambdas[i - k + 1]):
            return k
    return order


def in_x0(
    config: Any, kept: float, weights: list[float], levels: list[Level]
) -> tuple[list[float], list[float]]:
    """a, b of x0 from the weights of eps at this node and those before."""
    is_v = config.prediction_type == "v_prediction"
    a = []
    for w, (alpha, sigma) in zip(weights, levels, strict=True):
        # the noise of v is alpha m + sigma x, and alpha² + sigma² in float32 is not quite 1
        norm = float(alpha) ** 2 + float(sigma) ** 2 if is_v else 1.0
        a.append(w * norm / float(sigma))
    b = [
        -w * float(alpha) / float(sigma) for w, (alpha, sigma) in zip(weights, levels, strict=True)
    ]
    return [kept + a[0], *a[1:]], b


def _order(config: Any, i: int, num_steps: int) -> int:
    is_short = config.lower_order_final and num_steps < FEW_STEPS
    is_last = i == num_steps - 1
    if is_last and (config.euler_at_final or is_short or config.final_sigmas_type == "zero"):
        return 1
    if i == num_steps - 2 and is_short:
        return int(min(config.solver_order, i + 1, 2))
    return int(min(config.solver_order, i + 1))


def _gains(
    config: Any, order: int, here: Level, there: Level, h: Tensor
) -> tuple[float, list[float], float]:
    """Weights of x, of D0, D1, D2 and of the noise.

    Rounding may make a step of no length, as the last one with "sigma_min" is, go backwards: then
    it adds no noise.
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = here, there
    kind = config.algorithm_type
    is_heun = config.solver_type == "heun" or order == 3
    exp = torch.exp
    if kind == "dpmsolver++":
        e = exp(-h) - 1.0
        kept = sigma_t / sigma_s
        first = alpha_t * (e / h + 1.0) if is_heun else -0.5 * (alpha_t * e)
        gains = [-(alpha_t * e), first, -(alpha_t * ((e + h) / h**2 - 0.5))]
        c: Number = 0.0
    elif kind == "dpmsolver":
        e = exp(h) - 1.0
        kept = alpha_t / alpha_s
        first = -(sigma_t * (e / h - 1.0)) if is_heun else -0.5 * (sigma_t * e)
        gains = [-(sigma_t * e), first, -(sigma_t * ((e - h) / h**2 - 0.5))]
        c = 0.0
    elif kind == "sde-dpmsolver++":
        e = 1 - exp(-2.0 * h)
        kept = sigma_t / sigma_s * exp(-h)
        first = alpha_t * (e / (-2.0 * h) + 1.0) if is_heun else 0.5 * (alpha_t * e)
        gains = [alpha_t * e, first, alpha_t * ((e - 2.0 * h) / (2.0 * h) ** 2 - 0.5)]
        c = sigma_t * torch.sqrt(torch.clamp(e, min=0.0))
    else:
        e = exp(h) - 1.0
        kept = alpha_t / alpha_s
        first = -2.0 * (sigma_t * (e / h - 1.0)) if is_heun else -(sigma_t * e)
        gains = [-2.0 * (sigma_t * e), first]
        c = sigma_t * torch.sqrt(torch.clamp(exp(2 * h) - 1.0, min=0.0))
    return float(kept), [float(gain) for gain in gains[:order]], float(c)


def _weights(gains: list[float], h: Tensor, lambdas: list[Tensor]) -> list[float]:
    """Weights of the converted outputs m0, m1, m2 from those of D0, D1, D2."""
    if len(gains) == 1:
        return gains
    r0 = (lambdas[0] - lambdas[1]) / h
    inverse_0 = float(1.0 / r0)
    if len(gains) == 2:
        return [gains[0] + gains[1] * inverse_0, -gains[1] * inverse_0]
    r1 = (lambdas[1] - lambdas[2]) / h
    inverse_1, share, curve = float(1.0 / r1), float(r0 / (r0 + r1)), float(1.0 / (r0 + r1))
    # D1 = d0 + share (d0 - d1), D2 = curve (d0 - d1) with d0, d1 the two slopes
    early = gains[1] * (1.0 + share) + gains[2] * curve
    late = -(gains[1] * share + gains[2] * curve)
    return [
        gains[0] + early * inverse_0,
        -early * inverse_0 + late * inverse_1,
        -late * inverse_1,
    ]
