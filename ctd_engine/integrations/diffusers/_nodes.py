"""What the families have in common: a table that grows node by node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from ctd_engine._fold import banded, posterior_std, raw_coefficients
from ctd_engine._grid import Grid
from ctd_engine._output_rule import OutputRule
from ctd_engine._table import SolverTable

__all__ = [
    "Number",
    "X0Nodes",
    "bounded",
    "bounds",
    "prediction_of",
    "refuse_epsilon",
    "refuse_epsilon_of_pure_noise",
    "require",
]

# a number of the scheduler's own tables: a tensor without dimensions, in its precision
Number = Any

# diffusers keeps alpha² at 2^-24 where zero terminal SNR is meant, so that sigma / alpha is 4096
LARGEST_RATIO = 4095.0

PREDICTIONS = {
    "epsilon": "epsilon",
    "sample": "x0",
    "original_sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}


@dataclass
class X0Nodes:
    """The nodes of a table in order, written in x0.

    Args:
        name: of the solver.
        prediction: the scheduler's `prediction_type`.
    """

    name: str
    prediction: str
    _values: dict[str, list[Any]] = field(default_factory=dict)

    def add(
        self,
        *,
        a: Sequence[SupportsFloat],
        b: Sequence[SupportsFloat],
        c: SupportsFloat = 0.0,
        p: SupportsFloat,
        q: SupportsFloat,
        time: SupportsFloat,
        alpha: SupportsFloat,
        sigma: SupportsFloat,
        input_scale: SupportsFloat = 1.0,
    ) -> None:
        """x_{i+1} = sum_k a[k] x_{i-k} + sum_k b[k] x0_{i-k} + c z_i with x0_i = p x_i + q m_i."""
        numbers = {
            "c": c,
            "p": p,
            "q": q,
            "time": time,
            "alpha": alpha,
            "sigma": sigma,
            "input_scale": input_scale,
        }
        rows = {"a": [float(v) for v in a], "b": [float(v) for v in b]}
        for name, value in {**{k: float(v) for k, v in numbers.items()}, **rows}.items():
            self._values.setdefault(name, []).append(value)

    def table(
        self,
        alpha: SupportsFloat,
        sigma: SupportsFloat,
        *,
        num_steps: int | None = None,
        initial_scale: SupportsFloat = 1.0,
        clip_x0: float | None = None,
        rule: OutputRule | None = None,
    ) -> SolverTable:
        """The table, whose sample has signal `alpha` and noise `sigma`."""
        v = self._values
        count = len(v["c"])
        a, b = banded(v["a"], v["b"])
        p, q = _vector(v["p"]), _vector(v["q"])
        raw_a, raw_b = raw_coefficients(a, b, p, q)
        alphas = _vector([*v["alpha"], float(alpha)])
        sigmas = _vector([*v["sigma"], float(sigma)])
        times = _vector(v["time"])
        logsnr = 2.0 * (alphas.log() - sigmas.log())
        scale = posterior_std(Grid(alphas, sigmas, logsnr, times)).nan_to_num(nan=0.0)
        # the second stage of a step lies at the level it goes to: the step's own noise judges it
        is_stage = sigmas[1:] / alphas[1:] == sigmas[:-1] / alphas[:-1]
        scale[1:] = torch.where(is_stage[1:], scale[:-1], scale[1:])
        return SolverTable(
            name=self.name,
            prediction=PREDICTIONS[self.prediction],
            num_steps=count if num_steps is None else num_steps,
            A=raw_a,
            B=raw_b,
            C=_vector(v["c"]),
            P=p,
            Q=q,
            input_scale=_vector(v["input_scale"]),
            model_time=times,
            error_scale=torch.cat([scale, torch.zeros(1, dtype=torch.float64)]),
            initial_scale=float(initial_scale),
            alpha=alphas,
            sigma=sigmas,
            clip_x0=clip_x0,
            rule=rule,
        )


def _vector(values: Sequence[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def bounds(config: Any) -> dict[str, Any]:
    """Arguments of an `OutputRule` for what the configuration says of bounding x0; {} for nothing.

    As in diffusers, thresholding wins over clip_sample.
    """
    if config.get("thresholding", False):
        return {
            "quantile": config["dynamic_thresholding_ratio"],
            "max_value": config["sample_max_value"],
        }
    if config.get("clip_sample", False):
        return {"clip": float(config["clip_sample_range"])}
    return {}


def bounded(config: Any) -> dict[str, Any]:
    """Arguments of a table whose steps know nothing of x0 but its bounded value."""
    bound = bounds(config)
    variance = "unused" if config.get("variance_type") in ("learned", "learned_range") else None
    if "quantile" in bound or variance is not None:
        return {"rule": OutputRule(**bound, variance=variance)}
    # plain clipping needs no rule
    return {"clip_x0": bound.get("clip")}


def require(config: Any, name: str, choices: Sequence[Any], instead: str) -> Any:
    """The option's value, one of those that have a table."""
    value = config[name]
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        is_plain = isinstance(value, (str, int, float, list, tuple))
        got = repr(value) if is_plain else type(value).__name__
        raise ValueError(f"{name} must be {listed} to have a table, got {got}; {instead}")
    return value


def prediction_of(config: Any, names: Sequence[str]) -> str:
    """The prediction type, one of those that the scheduler knows."""
    return str(require(config, "prediction_type", names, "use one of them"))


def refuse_epsilon_of_pure_noise(config: Any, sigmas: Tensor) -> None:
    """Raise where eps says nothing about the data: zero terminal SNR, in sigma / alpha."""
    if config.prediction_type != "epsilon" or not config.get("rescale_betas_zero_snr", False):
        return
    if float(sigmas.max()) > LARGEST_RATIO:
        refuse_epsilon()


def refuse_epsilon() -> None:
    """Raise the error of epsilon prediction at zero terminal SNR."""
    raise ValueError(
        'prediction_type "epsilon" says nothing about the data at the zero terminal SNR that '
        'rescale_betas_zero_snr makes; use a model with "v_prediction" or "sample", or '
        "rescale_betas_zero_snr=False"
    )
