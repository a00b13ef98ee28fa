"""Schedulers that step in the coordinate x / alpha, in which the noise level is sigma."""

from __future__ import annotations

from typing import Any

from ctd_engine._table import SolverTable
from ctd_engine.integrations.diffusers._nodes import Nodes, Number, require

__all__ = ["data", "euler"]


def euler(scheduler: Any) -> SolverTable:
    """EulerDiscreteScheduler (Karras et al. 2022, arXiv 2206.00364, Alg. 1, without churn)."""
    nodes = Nodes("euler", prediction(scheduler.config))
    sigmas = scheduler.sigmas
    for i, time in enumerate(scheduler.timesteps):
        s_t, s_s = sigmas[i], sigmas[i + 1]
        dt = s_s - s_t
        # x + (x - x0) / s_t dt
        slope = float(dt) / float(s_t)
        p, q = data(scheduler.config, s_t)
        nodes.add(
            a=[1.0 + slope],
            b=[-slope],
            p=p,
            q=q,
            time=time,
            alpha=1.0,
            sigma=s_t,
            input_scale=1.0 / float((s_t**2 + 1) ** 0.5),
        )
    return nodes.table(1.0, sigmas[-1], initial_scale=scheduler.init_noise_sigma)


def prediction(config: Any) -> str:
    """The prediction type, refused where it says nothing."""
    names = ("epsilon", "sample", "original_sample", "v_prediction")
    return str(require(config, "prediction_type", names, "use one of them"))


def data(config: Any, s_t: Number) -> tuple[float, float]:
    """P and Q of x0 = P x + Q m at the noise level s_t."""
    if config.prediction_type == "epsilon":
        return 1.0, -float(s_t)
    if config.prediction_type == "v_prediction":
        return 1.0 / float(s_t**2 + 1), float(-s_t / (s_t**2 + 1) ** 0.5)
    return 0.0, 1.0
