"""Schedulers with EDM's preconditioning (Karras et al. 2022, arXiv 2206.00364, table 1)."""

from __future__ import annotations

from typing import Any

from ctd_engine._table import SolverTable
from ctd_engine.integrations.diffusers._multistep import multistep
from ctd_engine.integrations.diffusers._nodes import (
    Number,
    X0Nodes,
    bounded,
    prediction_of,
    require,
)

__all__ = ["edm_dpmsolver", "edm_euler"]


def edm_euler(scheduler: Any) -> SolverTable:
    """EDMEulerScheduler: x + (s_s - s_t) (x - x0) / s_t, without churn."""
    nodes, sigmas = X0Nodes("edm_euler", _prediction(scheduler.config)), scheduler.sigmas
    for i, time in enumerate(scheduler.timesteps):
        s_t, s_s = sigmas[i], sigmas[i + 1]
        slope = float(s_s - s_t) / float(s_t)
        nodes.add(a=[1.0 + slope], b=[-slope], time=time, **_model(scheduler.config, s_t))
    return nodes.table(1.0, sigmas[-1], initial_scale=scheduler.init_noise_sigma)


def edm_dpmsolver(scheduler: Any) -> SolverTable:
    """EDMDPMSolverMultistepScheduler: DPM-Solver++ and its SDE form with alpha = 1."""
    config, sigmas = scheduler.config, scheduler.sigmas
    if config.algorithm_type == "sde-dpmsolver++":
        require(config, "solver_order", (1, 2), 'algorithm_type "dpmsolver++" has order 3 too')
    nodes = X0Nodes("edm_dpmsolver", _prediction(config))
    # integer 1, as in the scheduler: its logarithm is float32
    levels = [(1, sigma) for sigma in sigmas]
    for i, step in enumerate(multistep(config, levels)):
        nodes.add(**step, time=scheduler.timesteps[i], **_model(config, sigmas[i]))
    return nodes.table(1.0, sigmas[-1], initial_scale=scheduler.init_noise_sigma, **bounded(config))


def _prediction(config: Any) -> str:
    return prediction_of(config, ("epsilon", "v_prediction"))


def _model(config: Any, s_t: Number) -> dict[str, Number]:
    d = config.sigma_data
    norm = s_t**2 + d**2
    sign = 1.0 if config.prediction_type == "epsilon" else -1.0
    return dict(
        p=float(d**2 / norm),
        q=sign * float(s_t * d / norm**0.5),
        alpha=1.0,
        sigma=s_t,
        input_scale=float(1 / norm**0.5),
    )
