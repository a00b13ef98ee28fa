"""SolverTable: a solver as data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ctd_engine import _checks
from ctd_engine._output_rule import OutputRule

__all__ = ["SolverTable"]


@dataclass(frozen=True, eq=False)
class SolverTable:
    """A solver as a banded linear recurrence in states x and raw model outputs m.

        x_{i+1} = sum_{k<K} A[i,k] x_{i-k} + sum_{k<K} B[i,k] m_{i-k} + C[i] z_i
        m_i     = model(input_scale[i] x_i, model_time[i]),     x0_i = P[i] x_i + Q[i] m_i

    Everything is float64 on the CPU and cast once by a sampler. N = `num_nodes` counts model
    calls in a row; a two-stage solver has two nodes per step.

    Args:
        name: the solver.
        prediction: what the model returns; told in errors and plots.
        num_steps: steps that the user asked for.
        A, B: [N, K]; entries that reach before node 0 are 0.
        C: [N].
        P, Q: [N], Q never 0.
        input_scale, model_time: [N].
        error_scale: [N + 1], the standard deviation of the DDPM posterior noise of the step that
            leaves x_i, by which a sampler judges the error of x_i. Where it is 0 a point is
            accepted only unchanged, but at the end, where the last scale above 0 is used.
        initial_scale: x_0 = initial_scale z.
        alpha, sigma: [N + 1], the schedule at the nodes.
        clip_x0: x0 is clipped to [-clip_x0, clip_x0]; None does not clip.
        rule: what is not linear in the output besides, and then does the clipping too.
        time_as_input: the model is told times in the dtype of its input; False keeps them in that
            of the states, at least float32.

    Raises:
        ValueError: a field has the wrong shape or dtype, is not finite, or Q holds a 0.
    """

    name: str
    prediction: str
    num_steps: int
    A: Tensor
    B: Tensor
    C: Tensor
    P: Tensor
    Q: Tensor
    input_scale: Tensor
    model_time: Tensor
    error_scale: Tensor
    initial_scale: float
    alpha: Tensor
    sigma: Tensor
    clip_x0: float | None = None
    rule: OutputRule | None = None
    time_as_input: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.A, Tensor) or self.A.dim() != 2 or self.A.numel() == 0:
            raise ValueError("A must be a float64 tensor [N, K] with N, K >= 1")
        n, k = self.A.shape
        shapes: dict[str, tuple[int, ...]] = {"A": (n, k), "B": (n, k)}
        shapes |= dict.fromkeys(("C", "P", "Q", "input_scale", "model_time"), (n,))
        shapes |= dict.fromkeys(("error_scale", "alpha", "sigma"), (n + 1,))
        for name, shape in shapes.items():
            value = getattr(self, name)
            if not isinstance(value, Tensor) or tuple(value.shape) != shape:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"{name} must be a tensor of shape {shape}, got {got}")
            if value.dtype != torch.float64 or value.device.type != "cpu":
                raise ValueError(
                    f"{name} must be float64 on the cpu, got {value.dtype} on {value.device}"
                )
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} must be finite, it holds NaN or infinity")
        if bool((self.Q == 0).any()):
            raise ValueError("Q must not be 0: x0 = P x + Q m must depend on the model's output")
        if bool((self.error_scale < 0).any()):
            raise ValueError("error_scale must not be negative")
        for i in range(min(n, k - 1)):
            if bool((self.A[i, i + 1 :] != 0).any()) or bool((self.B[i, i + 1 :] != 0).any()):
                raise ValueError(f"A[{i}] and B[{i}] must be 0 where they reach before node 0")
        _checks.require_float("initial_scale", self.initial_scale, above=0.0)
        if self.clip_x0 is not None:
            _checks.require_float("clip_x0", self.clip_x0, above=0.0)
            if self.rule is not None:
                raise ValueError("clip_x0 must be None with a rule: OutputRule(clip=...) clips")
        if self.rule is not None:
            self.rule.check(n)

    @property
    def num_nodes(self) -> int:
        """N, model calls in a row."""
        return self.A.shape[0]

    @property
    def outputs(self) -> int:
        """Numbers that the model returns per element of x: 2 with a learned variance, else 1."""
        return 1 if self.rule is None else self.rule.outputs

    @property
    def order(self) -> int:
        """K, how many states and outputs the recurrence looks back on."""
        return self.A.shape[1]

    @cached_property
    def is_stochastic(self) -> bool:
        """Whether any step adds noise."""
        return bool((self.C != 0).any())

    @cached_property
    def A_x0(self) -> Tensor:  # noqa: N802 (the paper's letter)
        """A of the recurrence written in x0 instead of m: A - B P / Q, [N, K]."""
        return self.A - self.B * _lagged(self.P / self.Q, self.order)

    @cached_property
    def B_x0(self) -> Tensor:  # noqa: N802 (the paper's letter)
        """B of the recurrence written in x0 instead of m: B / Q, [N, K]."""
        return self.B * _lagged(1.0 / self.Q, self.order)


def _lagged(values: Tensor, order: int) -> Tensor:
    # [N] -> [N, K] with entry (i, k) = values[i - k]; 0 before node 0
    out = torch.zeros(len(values), order, dtype=values.dtype)
    for k in range(min(order, len(values))):
        out[k:, k] = values[: len(values) - k]
    return out
