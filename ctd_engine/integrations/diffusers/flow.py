"""FlowMatchEulerDiscreteScheduler: x_t = (1 - t) x0 + t eps, the model returns eps - x0."""

from __future__ import annotations

from typing import Any

from ctd_engine._table import SolverTable
from ctd_engine.integrations.diffusers._nodes import X0Nodes

__all__ = ["flow_euler"]


def flow_euler(scheduler: Any) -> SolverTable:
    """x_s = x_t + (s - t) m (Liu et al. 2022, arXiv 2209.03003).

    With `stochastic_sampling` x_s = (1 - s) x0 + s z. With `invert_sigmas` the scheduler's sigma is
    1 - t, rising, and the model returns x0 - eps.
    """
    config = scheduler.config
    nodes = X0Nodes("flow_euler", "flow_prediction")
    sigmas = scheduler.sigmas
    sign = -1.0 if config.invert_sigmas else 1.0

    def level(sigma: Any) -> float:
        return 1.0 - float(sigma) if config.invert_sigmas else float(sigma)

    for i, time in enumerate(scheduler.timesteps):
        t, s = level(sigmas[i]), level(sigmas[i + 1])
        if t == 0.0:
            raise ValueError(
                f"sigmas must be positive but for the last, which the scheduler adds, got 0 at "
                f"step {i}: leave it out"
            )
        # x + dt m with m = sign (x - x0) / t
        slope = sign * float(sigmas[i + 1] - sigmas[i]) / t
        is_noisy = bool(config.get("stochastic_sampling", False))
        nodes.add(
            a=[0.0 if is_noisy else 1.0 + slope],
            b=[1.0 - s if is_noisy else -slope],
            c=s if is_noisy else 0.0,
            p=1.0,
            q=-sign * t,
            time=time,
            alpha=1.0 - t,
            sigma=t,
        )
    end = level(sigmas[-1])
    return nodes.table(1.0 - end, end)
