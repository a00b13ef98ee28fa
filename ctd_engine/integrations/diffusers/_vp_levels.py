"""alpha, sigma and the reading of x0 from the sigma / alpha of a multistep scheduler."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ctd_engine.integrations.diffusers._nodes import Number

__all__ = ["data", "vp_levels"]


def vp_levels(config: Any, sigmas: Tensor) -> list[tuple[Number, Number]]:
    """(alpha, sigma) of every level, variance preserving or of a flow."""
    if config.get("use_flow_sigmas", False):
        return [(1 - sigma, sigma) for sigma in sigmas]
    alphas = [1 / ((sigma**2 + 1) ** 0.5) for sigma in sigmas]
    return [(alpha, sigma * alpha) for alpha, sigma in zip(alphas, sigmas, strict=True)]


def data(config: Any, ratio: Number, alpha: Number, sigma: Number) -> tuple[float, float]:
    """P and Q of x0 = P x + Q m; `ratio` is the scheduler's own sigma."""
    alpha, sigma = float(alpha), float(sigma)
    if config.prediction_type == "epsilon":
        return 1.0 / alpha, -sigma / alpha
    if config.prediction_type == "v_prediction":
        return alpha, -sigma
    if config.prediction_type == "flow_prediction":
        return 1.0, -float(ratio)
    return 0.0, 1.0
