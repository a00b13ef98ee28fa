"""DDPMScheduler and DDIMScheduler: a_t = alphas_cumprod[t] = alpha², b = 1 - a = sigma².

s is the timestep of the next node, found in the list of timesteps; after the last one comes the
sample, with a_s = 1 (DDIM's `set_alpha_to_one` may say alphas_cumprod[0]).
"""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any

import torch

from ctd_engine import _checks
from ctd_engine._output_rule import OutputRule
from ctd_engine._table import SolverTable
from ctd_engine.integrations.diffusers._nodes import (
    Number,
    X0Nodes,
    bounded,
    bounds,
    prediction_of,
    refuse_epsilon,
    require,
)

__all__ = ["ddim", "ddpm"]

logger = logging.getLogger("ctd_engine")

VARIANCES = (
    "fixed_small",
    "fixed_small_log",
    "fixed_large",
    "fixed_large_log",
    "learned",
    "learned_range",
)
PREDICTIONS = ("epsilon", "sample", "v_prediction")
# what diffusers keeps under a variance whose logarithm may be taken
LEAST_VARIANCE = 1e-20


def ddpm(scheduler: Any) -> SolverTable:
    """Ho et al. 2020 (arXiv 2006.11239), eq. 7, with every `variance_type`.

    The step to the sample adds no noise. diffusers adds it there where the last timestep is not 0,
    and its "fixed_large_log" takes the root of a logarithm, which is NaN.
    """
    config = scheduler.config
    kind = require(config, "variance_type", VARIANCES, "use one of them")
    nodes = X0Nodes("ddpm", prediction_of(config, PREDICTIONS))
    low, high = [], []
    for t, a_t, a_s, is_last in _pairs(scheduler, torch.tensor(1.0)):
        b_t, b_s = 1 - a_t, 1 - a_s
        ratio = a_t / a_s
        beta = 1 - ratio
        variance = torch.clamp(b_s / b_t * beta, min=LEAST_VARIANCE)
        small, large = variance**0.5, beta**0.5
        low.append(float(small))
        high.append(float(large))
        std: Number = large if kind.startswith("fixed_large") else small
        if t == 0 or (is_last and not kind.startswith("fixed_small")):
            std = 0.0
        p, q = _data(config, a_t, b_t)
        nodes.add(
            a=[ratio**0.5 * b_s / b_t],
            b=[a_s**0.5 * beta / b_t],
            c=std,
            p=p,
            q=q,
            time=t,
            alpha=a_t**0.5,
            sigma=b_t**0.5,
        )
    bound = bounds(config)
    if not kind.startswith("learned"):
        return nodes.table(1.0, 0.0, **bounded(config))
    if kind == "learned":
        return nodes.table(1.0, 0.0, rule=OutputRule(**bound, variance=kind))
    least, most = (torch.tensor(values, dtype=torch.float64) for values in (low, high))
    return nodes.table(1.0, 0.0, rule=OutputRule(**bound, variance=kind, low=least, high=most))


def ddim(
    scheduler: Any, *, eta: float = 0.0, use_clipped_model_output: bool = False
) -> SolverTable:
    """Song et al. 2020 (arXiv 2010.02502), eq. 12 and 16.

    Where x0 is bounded the noise that the step goes on with is still the model's own, as in
    diffusers, unless `use_clipped_model_output`.
    """
    eta = _checks.require_float("eta", eta, minimum=0.0)
    if eta > 1.0:
        raise ValueError(f"eta must be in [0, 1], got {eta:g}")
    config = scheduler.config
    nodes = X0Nodes("ddim", prediction_of(config, PREDICTIONS))
    remainder = []
    end = scheduler.final_alpha_cumprod
    pairs = _pairs(scheduler, end)
    _tell_of_stride(scheduler, [t for t, *_ in pairs])
    for t, a_t, a_s, _ in pairs:
        b_t = 1 - a_t
        variance = (1 - a_s) / b_t * (1 - a_t / a_s)
        std = eta * variance**0.5
        # rounding may leave less than nothing where a_t = 0
        direction = torch.clamp(1 - a_s - std**2, min=0.0) ** 0.5
        slope = float(direction) / float(b_t**0.5)
        root = float(a_t**0.5)
        p, q = _data(config, a_t, b_t)
        norm = 1.0
        if config.prediction_type == "v_prediction" and not use_clipped_model_output:
            # the noise of v is alpha m + sigma x, and alpha² + sigma² in float32 is not quite 1
            norm = root**2 + float(b_t**0.5) ** 2
        nodes.add(
            a=[slope * norm],
            b=[float(a_s**0.5) - slope * root],
            c=std,
            p=p,
            q=q,
            time=t,
            alpha=root,
            sigma=b_t**0.5,
        )
        # eps(x0~) = eps(x0) - alpha_t / sigma_t (x0~ - x0)
        remainder.append(-slope * root)
    bound = bounds(config)
    if bound and not use_clipped_model_output:
        rest = torch.tensor(remainder, dtype=torch.float64)
        return nodes.table(end**0.5, (1 - end) ** 0.5, rule=OutputRule(**bound, remainder=rest))
    return nodes.table(end**0.5, (1 - end) ** 0.5, **bounded(config))


def _tell_of_stride(scheduler: Any, timesteps: list[int]) -> None:
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    passed = [t for t, s in pairwise(timesteps) if t - stride != s]
    if passed or timesteps[-1] - stride >= 0:
        logger.warning(
            "%s steps by a fixed stride of %d, which is not the distance of its timesteps (%s); "
            "here every step goes to the next timestep, so that samples differ from its own: "
            'timestep_spacing="leading", or a number of steps that divides %d, avoids that',
            type(scheduler).__name__,
            stride,
            scheduler.config.timestep_spacing,
            scheduler.config.num_train_timesteps,
        )


def _pairs(scheduler: Any, end: Number) -> list[tuple[int, Number, Number, bool]]:
    """(t, a_t, a_s, whether it is the last) of every step."""
    timesteps = [int(t) for t in scheduler.timesteps]
    most = len(scheduler.alphas_cumprod) - 1
    for t in timesteps:
        if not 0 <= t <= most:
            raise ValueError(
                f"timesteps must lie in [0, {most}], got {t}: with steps_offset "
                f"{scheduler.config.steps_offset} and {len(timesteps)} steps they leave the "
                "schedule; use fewer steps, or steps_offset=0"
            )
    levels = [scheduler.alphas_cumprod[t] for t in timesteps]
    is_epsilon = scheduler.config.prediction_type == "epsilon"
    if is_epsilon and any(float(level) == 0.0 for level in levels):
        refuse_epsilon()
    after = [*levels[1:], end]
    last = len(levels) - 1
    return [
        (t, a_t, a_s, i == last)
        for i, (t, a_t, a_s) in enumerate(zip(timesteps, levels, after, strict=True))
    ]


def _data(config: Any, a_t: Number, b_t: Number) -> tuple[float, float]:
    # P and Q of x0 = P x + Q m
    root_a, root_b = float(a_t**0.5), float(b_t**0.5)
    if config.prediction_type == "epsilon":
        return 1.0 / root_a, -root_b / root_a
    if config.prediction_type == "sample":
        return 0.0, 1.0
    return root_a, -root_b
