"""Schedulers that step in the coordinate x / alpha, in which the noise level is sigma.

s_t is the level that a step leaves and s_s the one it reaches; d = (x - x0) / s_t is the slope of
the probability flow (Karras et al. 2022, arXiv 2206.00364, eq. 3 and table 1).
"""

from __future__ import annotations

from typing import Any

import torch

from ctd_engine._table import SolverTable
from ctd_engine.integrations.diffusers._nodes import (
    Number,
    X0Nodes,
    bounded,
    prediction_of,
    refuse_epsilon_of_pure_noise,
)

__all__ = ["euler", "euler_ancestral", "heun"]


def euler(scheduler: Any) -> SolverTable:
    """EulerDiscreteScheduler: x + (s_s - s_t) d, without churn."""
    nodes, sigmas = _begin("euler", scheduler, ("original_sample", "sample")), scheduler.sigmas
    for i, time in enumerate(scheduler.timesteps):
        s_t, s_s = sigmas[i], sigmas[i + 1]
        slope = float(s_s - s_t) / float(s_t)
        nodes.add(a=[1.0 + slope], b=[-slope], time=time, **_model(scheduler.config, s_t))
    return nodes.table(1.0, sigmas[-1], initial_scale=scheduler.init_noise_sigma)


def euler_ancestral(scheduler: Any) -> SolverTable:
    """EulerAncestralDiscreteScheduler: down to less than s_s, then noise up to it."""
    nodes, sigmas = _begin("euler_ancestral", scheduler, ()), scheduler.sigmas
    for i, time in enumerate(scheduler.timesteps):
        s_t, s_s = sigmas[i], sigmas[i + 1]
        up = (s_s**2 * (s_t**2 - s_s**2) / s_t**2) ** 0.5
        down = torch.clamp(s_s**2 - up**2, min=0.0) ** 0.5
        slope = float(down - s_t) / float(s_t)
        nodes.add(a=[1.0 + slope], b=[-slope], c=up, time=time, **_model(scheduler.config, s_t))
    return nodes.table(1.0, sigmas[-1], initial_scale=scheduler.init_noise_sigma)


def heun(scheduler: Any) -> SolverTable:
    """HeunDiscreteScheduler: nodes 2i and 2i + 1 are the two stages of step i, as in its loop.

    Its lists of sigmas and timesteps hold every level but the first and the last twice.
    """
    nodes, sigmas = _begin("heun", scheduler, ("sample",)), scheduler.sigmas
    for i, time in enumerate(scheduler.timesteps):
        model = _model(scheduler.config, sigmas[i])
        if i % 2 == 0:
            s_t, s_s = sigmas[i], sigmas[i + 1]
            slope = float(s_s - s_t) / float(s_t)
            nodes.add(a=[1.0 + slope], b=[-slope], time=time, **model)
            continue
        # from the step's own start, with the mean of both slopes
        s_t, s_s = sigmas[i - 1], sigmas[i]
        half = 0.5 * float(s_s - s_t)
        late, early = half / float(s_s), half / float(s_t)
        nodes.add(a=[late, 1.0 + early], b=[-late, -early], time=time, **model)
    return nodes.table(
        1.0,
        sigmas[-1],
        num_steps=(len(scheduler.timesteps) + 1) // 2,
        initial_scale=scheduler.init_noise_sigma,
        **bounded(scheduler.config),
    )


def _begin(name: str, scheduler: Any, others: tuple[str, ...]) -> X0Nodes:
    prediction = prediction_of(scheduler.config, ("epsilon", "v_prediction", *others))
    refuse_epsilon_of_pure_noise(scheduler.config, scheduler.sigmas)
    return X0Nodes(name, prediction)


def _model(config: Any, s_t: Number) -> dict[str, Number]:
    """What a node at level s_t tells the model and how it reads x0 = P x + Q m."""
    p, q = 0.0, 1.0
    if config.prediction_type == "epsilon":
        p, q = 1.0, -float(s_t)
    elif config.prediction_type == "v_prediction":
        p, q = 1.0 / float(s_t**2 + 1), float(-s_t / (s_t**2 + 1) ** 0.5)
    scale = 1.0 / float((s_t**2 + 1) ** 0.5)
    return dict(p=p, q=q, alpha=1.0, sigma=s_t, input_scale=scale)
