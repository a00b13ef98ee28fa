"""UniPCMultistepScheduler: a predictor, and a corrector that needs no model call of its own.

Zhao et al. 2023 (arXiv 2302.04867). With x~_i the state that the model is given, c_i its corrected
value and M_i the converted output (x0, or eps), the loop is

    c_i     = r c_{i-1} + sum_k q_k M_{i-1-k} + q M_i        (corrector, of step i - 1's order)
    x~_{i+1} = r' c_i + sum_k p_k M_{i-k}                    (predictor)

The corrector starts from the c_{i-1} that made x~_i, with the same r: eliminating it gives
c_i = x~_i + sum_k (q_k - p_k) M_{i-1-k} + q M_i, a recurrence in x~ alone with one more output.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ctd_engine._table import SolverTable
from ctd_engine.integrations.diffusers._multistep import in_x0, log_ratio, usable_order
from ctd_engine.integrations.diffusers._nodes import (
    Number,
    X0Nodes,
    bounded,
    prediction_of,
    refuse_epsilon_of_pure_noise,
    require,
)
from ctd_engine.integrations.diffusers._vp_levels import data, vp_levels
from ctd_engine.ops.picard_update import MAX_ORDER

__all__ = ["unipc"]


def unipc(scheduler: Any) -> SolverTable:
    """UniPC with B(h) of either type, of order 1 and 2, and 3 where its corrector is disabled."""
    config, sigmas = scheduler.config, scheduler.sigmas
    require(config, "solver_p", (None,), "leave it out, so that UniPC predicts itself")
    require(config, "solver_type", ("bh1", "bh2"), "use one of them")
    others = ("flow_prediction",) if config.predict_x0 else ()
    prediction = prediction_of(config, ("epsilon", "sample", "v_prediction", *others))
    refuse_epsilon_of_pure_noise(config, sigmas)
    levels = vp_levels(config, sigmas)
    if not config.predict_x0 and config.thresholding:
        raise ValueError(
            "thresholding with predict_x0=False is ignored by UniPCMultistepScheduler; set "
            "thresholding=False, or predict_x0=True"
        )
    nodes = X0Nodes("unipc", prediction)
    step = _Step(config, levels)
    orders = [
        usable_order(step.lambdas, i, _order(config, i, len(levels) - 1, sigmas))
        for i in range(len(levels) - 1)
    ]
    for i, order in enumerate(orders):
        kept, weights = step.predictor(i, order)
        before = orders[i - 1] if i > 0 else 0
        if before > 0 and i - 1 not in config.disable_corrector:
            _, predicted = step.predictor(i - 1, before)
            now, corrected = step.corrector(i - 1, before)
            changes = [now, *(q - p for q, p in zip(corrected, predicted, strict=True))]
            weights += [0.0] * (len(changes) - len(weights))
            weights = [w + kept * change for w, change in zip(weights, changes, strict=True)]
        if len(weights) > MAX_ORDER:
            raise ValueError(
                f"solver_order {config.solver_order} of UniPCMultistepScheduler looks back on "
                f"{len(weights)} outputs at step {i}, and a table holds {MAX_ORDER}; use "
                "solver_order=2, or disable_corrector for all steps"
            )
        a, b = [kept], weights
        if not config.predict_x0:
            a, b = in_x0(config, kept, weights, [levels[i - k] for k in range(len(weights))])
        p, q = data(config, sigmas[i], *levels[i])
        alpha, sigma = levels[i]
        nodes.add(a=a, b=b, p=p, q=q, time=scheduler.timesteps[i], alpha=alpha, sigma=sigma)
    return nodes.table(*levels[-1], **bounded(config))


def _order(config: Any, i: int, num_steps: int, sigmas: Tensor) -> int:
    # a step to sigma = 0 is infinitely long in lambda: diffusers' higher orders are NaN there
    if float(sigmas[i + 1]) == 0.0:
        return 1
    order = config.solver_order
    if config.lower_order_final:
        order = min(order, num_steps - i)
    return int(min(order, i + 1))


class _Step:
    """Weights of predictor and corrector from level i to level i + 1."""

    def __init__(self, config: Any, levels: list[tuple[Number, Number]]) -> None:
        self._config = config
        self._levels = levels
        self.lambdas = [log_ratio(*level) for level in levels]

    def predictor(self, i: int, order: int) -> tuple[float, list[float]]:
        """Weight of c_i, and those of M_i, M_{i-1}, ..."""
        if order == 0:
            return 1.0, [0.0]
        kept, first, scale = self._exact(i)
        if order == 1:
            return kept, [first]
        ratios, matrix, right = self._equations(i, order)
        if order == 2:
            rhos = torch.full((1,), 0.5)
        else:
            rhos = torch.linalg.solve(matrix[:-1, :-1], right[:-1])
        return kept, _weights(first, scale, rhos.tolist(), ratios)

    def corrector(self, i: int, order: int) -> tuple[float, list[float]]:
        """Weights of M_{i+1}, and of M_i, M_{i-1}, ..."""
        _, first, scale = self._exact(i)
        ratios, matrix, right = self._equations(i, order)
        rhos = [0.5] if order == 1 else torch.linalg.solve(matrix, right).tolist()
        weights = _weights(first, scale, rhos[:-1], ratios)
        weights[0] += scale * rhos[-1]
        return -scale * rhos[-1], weights

    def _exact(self, i: int) -> tuple[float, float, float]:
        """Weights of the state and of M_i where M is constant, and alpha B(h) or sigma B(h)."""
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self._levels[i], self._levels[i + 1]
        if float(sigma_t) == 0.0:
            if self._config.predict_x0:
                return 0.0, float(alpha_t), math.nan
            # sigma_t expm1(h) in the limit
            return float(alpha_t / alpha_s), -float(alpha_t * sigma_s / alpha_s), math.nan
        h = self.lambdas[i + 1] - self.lambdas[i]
        hh = -h if self._config.predict_x0 else h
        phi = torch.expm1(hh)
        size = hh if self._config.solver_type == "bh1" else phi
        if self._config.predict_x0:
            return float(sigma_t / sigma_s), -float(alpha_t * phi), float(alpha_t * size)
        return float(alpha_t / alpha_s), -float(sigma_t * phi), float(sigma_t * size)

    def _equations(self, i: int, order: int) -> tuple[list[float], Tensor, Tensor]:
        """r_k of the outputs before M_i, and the order conditions R rho = b (eq. 5 and 6)."""
        here = self.lambdas[i]
        h = self.lambdas[i + 1] - here
        ratios = [(self.lambdas[i - k] - here) / h for k in range(1, order)]
        stacked = torch.stack([*ratios, torch.ones((), dtype=h.dtype)])
        hh = -h if self._config.predict_x0 else h
        size = hh if self._config.solver_type == "bh1" else torch.expm1(hh)
        phi_k = torch.expm1(hh) / hh - 1
        factorial = 1
        rows, right = [], []
        for k in range(1, order + 1):
            rows.append(torch.pow(stacked, k - 1))
            right.append(phi_k * factorial / size)
            factorial *= k + 1
            phi_k = phi_k / hh - 1 / factorial
        return [float(r) for r in ratios], torch.stack(rows), torch.stack(right)


def _weights(first: float, scale: float, rhos: list[float], ratios: list[float]) -> list[float]:
    # first M_i - scale sum_k rho_k (M_{i-k} - M_i) / r_k
    slopes = [scale * rho / ratio for rho, ratio in zip(rhos, ratios, strict=True)]
    return [first + sum(slopes), *(-slope for slope in slopes)]
