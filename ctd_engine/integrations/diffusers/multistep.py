"""DPMSolverMultistepScheduler."""

from __future__ import annotations

from typing import Any

from ctd_engine._table import SolverTable
from ctd_engine.integrations.diffusers._multistep import multistep
from ctd_engine.integrations.diffusers._nodes import (
    X0Nodes,
    bounded,
    prediction_of,
    refuse_epsilon_of_pure_noise,
    require,
)
from ctd_engine.integrations.diffusers._vp_levels import data, vp_levels

__all__ = ["dpmsolver"]

ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")


def dpmsolver(scheduler: Any) -> SolverTable:
    """DPM-Solver and DPM-Solver++ (Lu et al. 2022) of any order, and their SDE forms.

    A learned variance is not used, as in diffusers; it may have any number of channels.
    """
    config, sigmas = scheduler.config, scheduler.sigmas
    kind = require(config, "algorithm_type", ALGORITHMS, "use one of them")
    if kind == "sde-dpmsolver":
        require(config, "solver_order", (1, 2), 'algorithm_type "sde-dpmsolver++" has order 3 too')
    prediction = prediction_of(config, ("epsilon", "sample", "v_prediction", "flow_prediction"))
    refuse_epsilon_of_pure_noise(config, sigmas)
    levels = vp_levels(config, sigmas)
    nodes = X0Nodes("dpmsolver", prediction)
    for i, step in enumerate(multistep(config, levels)):
        p, q = data(config, sigmas[i], *levels[i])
        alpha, sigma = levels[i]
        nodes.add(**step, p=p, q=q, time=scheduler.timesteps[i], alpha=alpha, sigma=sigma)
    return nodes.table(*levels[-1], **bounded(config))
