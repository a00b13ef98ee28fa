"""Writing solver tables node by node, for models that return the denoised sample at a sigma.

States are x = x0 + sigma eps (alpha = 1). Every update of EDM's and k-diffusion's samplers is then
linear in the states and the denoised samples of the last few nodes, with coefficients that depend
on the noise levels alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from ctd_engine import _checks
from ctd_engine._fold import banded
from ctd_engine._table import SolverTable

__all__ = [
    "START",
    "Draw",
    "SigmaNodes",
    "noise_options",
    "require_levels",
    "std_between",
    "steps",
]

# the draw that the state before node 0 gets
START = -1


@dataclass(frozen=True)
class Draw:
    """Noise that leads from level `sigma` to `sigma_next`, added by the step that leaves `node`."""

    node: int
    sigma: float
    sigma_next: float


@dataclass
class SigmaNodes:
    """The nodes of a solver, collected in order.

    Args:
        name: the solver.
        start: noise level of the state that the sampler is given.
        lift: standard deviation of the noise that is added to it before node 0.
        draws: the noise in the order in which a sequential loop asks for it.
    """

    name: str
    start: float
    lift: float = 0.0
    levels: list[float] = field(default_factory=list)
    a: list[Sequence[float]] = field(default_factory=list)
    b: list[Sequence[float]] = field(default_factory=list)
    c: list[float] = field(default_factory=list)
    error_scale: list[float] = field(default_factory=list)
    step_of: list[int] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)

    def add(
        self,
        step: int,
        level: float,
        a: Sequence[float],
        b: Sequence[float],
        c: float = 0.0,
        *,
        scale: float,
    ) -> None:
        """A node at noise level `level`, evaluated there, and the step that leaves it.

        x_{i+1} = a[0] x_i + a[1] x_{i-1} + ... + b[0] x0_i + b[1] x0_{i-1} + ... + c z_i
        """
        self.step_of.append(step)
        self.levels.append(level)
        self.a.append(a)
        self.b.append(b)
        self.c.append(c)
        self.error_scale.append(scale)

    def add_euler(self, step: int, t: float, s: float, c: float = 0.0, *, scale: float) -> None:
        """Euler's step x_s = x_t + (s - t) (x_t - x0) / t."""
        self.add(step, t, [s / t], [1.0 - s / t], c, scale=scale)

    def add_midpoint(self, step: int, t: float, s: float, c: float = 0.0, *, scale: float) -> None:
        """DPM-Solver-2 (Lu et al. 2022, arXiv 2206.00927, Alg. 1) from t to s, Euler's to s = 0.

        x_s = x_t + (s - t) (x~ - x0~) / sqrt(t s), where x~ is Euler's step to sqrt(t s).
        """
        if s == 0.0:
            self.add_euler(step, t, s, c, scale=scale)
            return
        middle = math.sqrt(t * s)
        width = (s - t) / middle
        self.add_euler(step, t, middle, scale=scale)
        self.add(step, middle, [width, 1.0], [-width, 0.0], c, scale=scale)

    def draw(self, sigma: float, sigma_next: float) -> None:
        """The node added last gets the next noise; before the first one the start does."""
        node = len(self.levels) - 1 if self.levels else START
        self.draws.append(Draw(node, sigma, sigma_next))

    def table(
        self, end: float, clip_x0: float | None = None, *, time_as_input: bool = False
    ) -> SolverTable:
        """The table; the sample lies at level `end`, `time_as_input` as in `SolverTable`."""
        if clip_x0 is not None:
            clip_x0 = _checks.require_float("clip_x0", clip_x0, above=0.0)
        a, b = banded(self.a, self.b)
        count = len(self.levels)
        levels = _vector([*self.levels, end])
        return SolverTable(
            name=self.name,
            prediction="x0",
            num_steps=self.step_of[-1] + 1,
            A=a,
            B=b,
            C=_vector(self.c),
            P=_vector([0.0] * count),
            Q=_vector([1.0] * count),
            input_scale=_vector([1.0] * count),
            model_time=levels[:-1].clone(),
            error_scale=_vector([*self.error_scale, 0.0]),
            initial_scale=math.hypot(self.start, self.lift),
            alpha=torch.ones_like(levels),
            sigma=levels,
            clip_x0=clip_x0,
            time_as_input=time_as_input,
        )


def _vector(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def require_levels(name: str, values: Sequence[float]) -> list[float]:
    """Noise levels that fall strictly to a last one that may be 0.

    Raises:
        ValueError: fewer than two, not finite, negative, or not falling.
    """
    levels = [float(value) for value in values]
    if len(levels) < 2:
        raise ValueError(f"{name} must hold at least 2 noise levels, got {len(levels)}")
    for i, level in enumerate(levels):
        if not math.isfinite(level) or level < 0:
            raise ValueError(f"{name} must be finite and not negative, got {level} at {i}")
        if i > 0 and not level < levels[i - 1]:
            raise ValueError(
                f"{name} must fall strictly, got {levels[i - 1]:g} and then {level:g} at {i}; "
                "a repeated level is a step of length zero"
            )
    return levels


def std_between(sigma: float, sigma_next: float) -> float:
    """Standard deviation of q(x_next | x, x0), by which the error of a point is judged.

    `_fold.posterior_std` for one step with alpha = 1.
    """
    return sigma_next / sigma * math.sqrt(max(sigma**2 - sigma_next**2, 0.0))


def steps(levels: list[float]) -> Iterator[tuple[int, float, float, float]]:
    """Every step, the level it leaves, the level it reaches, and `std_between` of the two."""
    for i, (t, s) in enumerate(pairwise(levels)):
        yield i, t, s, std_between(t, s)


def noise_options(eta: float, s_noise: float) -> tuple[float, float]:
    """eta and s_noise, checked."""
    return (
        _checks.require_float("eta", eta, minimum=0.0),
        _checks.require_float("s_noise", s_noise, minimum=0.0),
    )
