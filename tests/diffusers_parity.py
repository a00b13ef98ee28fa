"""diffusers' own schedulers stepping in a loop, against our samplers with the same noise."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

from ctd_engine import ParallelSampler, SequentialSampler
from ctd_engine.integrations.diffusers import solver_table
from ctd_engine.solvers import SolverTable

SHAPE = (2, 3, 3)
BATCH = 2
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "trailing", "linspace")
# one of every family
NAMES = (
    "DDPMScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
)
Model = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@cache
def in_float64(name: str) -> Any:
    """diffusers' scheduler of this name with every float32 of its source read as float64.

    Most of them take float64 states to float32 within `step`, so that the class as installed
    cannot be compared to more than 7 digits.
    """
    module = sys.modules[installed(name).__module__]
    path = str(module.__file__)
    text = Path(path).read_text()
    for single, double in (
        ("torch.float32", "torch.float64"),
        ("np.float32", "np.float64"),
        ("torch.Tensor([", "torch.asarray(["),
    ):
        text = text.replace(single, double)
    copy = ModuleType(f"{module.__name__}_in_float64")
    copy.__package__ = module.__package__
    copy.__file__ = path
    sys.modules[copy.__name__] = copy
    exec(compile(text, path, "exec"), copy.__dict__)
    return getattr(copy, name)


def installed(name: str) -> Any:
    """The class of the installed diffusers."""
    return getattr(importlib.import_module("diffusers"), name)


def make(name: str, dtype: torch.dtype, **config: Any) -> Any:
    """A scheduler whose own arithmetic has this precision."""
    kind = in_float64(name) if dtype == torch.float64 else installed(name)
    return kind(**config)


def function_model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A smooth nonlinear function of x and t whose trajectories stay of order one."""
    t = t.to(x.dtype).view(-1, *[1] * (x.dim() - 1))
    other = x.flip(-1).roll(1, 1)
    return 0.7 * torch.sin(1.3 * x + 0.01 * t) + 0.3 * torch.tanh(other) * torch.cos(0.003 * t)


def large_model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Outputs of twice the size and no more slope, so that much of x0 is out of [-1, 1]."""
    places = torch.arange(x[0].numel(), dtype=x.dtype).view(x.shape[1:])
    phase = 0.01 * t.to(x.dtype).view(-1, *[1] * (x.dim() - 1)) + places
    return 0.5 * function_model(x, t) + 2.0 * torch.cos(phase)


def two_outputs(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The function with as many channels again in (0, 1): fit for either learned variance."""
    v = 0.5 + 0.45 * torch.sin(2.0 * x.flip(-1) + 0.005 * t.to(x.dtype)[:, None, None, None])
    return torch.cat([function_model(x, t), v], dim=1)


def noises(
    count: int, dtype: torch.dtype, shape: tuple[int, ...] = SHAPE
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [B, *shape] of unit scale and z [N, B, *shape], drawn in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64)
    z = torch.randn(count, BATCH, *shape, generator=generator, dtype=torch.float64)
    return x.to(dtype), z.to(dtype)


class _Draws:
    """Stands in for a scheduler module's `randn_tensor`: hands out z of the present node."""

    def __init__(self, z: torch.Tensor) -> None:
        self.z, self.node = z, 0

    def __call__(self, shape: Any, *_: Any, dtype: torch.dtype, **__: Any) -> torch.Tensor:
        assert tuple(shape) == self.z.shape[1:]
        return self.z[self.node].to(dtype)


class _Stride:
    """A number of steps whose stride is given: what DDIMScheduler subtracts from a timestep."""

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def __rfloordiv__(self, _: int) -> int:
        return self.stride


def run_loop(
    scheduler: Any,
    model: Model,
    x: torch.Tensor,
    z: torch.Tensor,
    steps: dict[str, Any],
    *,
    corrects_stride: bool = False,
    **options: Any,
) -> torch.Tensor:
    """What a pipeline does from the latents x with the noise z [N, B, *shape].

    `corrects_stride` tells DDIMScheduler before every step how far the next timestep lies.
    """
    scheduler.set_timesteps(**steps)
    if hasattr(scheduler, "set_begin_index"):
        # as pipelines do, for timesteps that come twice
        scheduler.set_begin_index(0)
    module = sys.modules[type(scheduler).__module__]
    draws = _Draws(z)
    has_scale = hasattr(scheduler, "scale_model_input")
    following = [*scheduler.timesteps[1:], torch.tensor(-1)]
    with (
        patch.object(module, "randn_tensor", draws, create=True),
        # flow matching's, in older versions
        patch.object(torch, "randn_like", lambda x: draws(x.shape, dtype=x.dtype)),
    ):
        for i, t in enumerate(scheduler.timesteps):
            draws.node = i
            scaled = scheduler.scale_model_input(x, t) if has_scale else x
            m = model(scaled, t.to(x.dtype).expand(len(x)))
            if corrects_stride:
                scheduler.num_inference_steps = _Stride(int(t - following[i]))
            x = scheduler.step(m, t, x, **options, return_dict=False)[0]
    return x


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((ours.double() - theirs).abs().max() / theirs.abs().max())


def check_parity(
    name: str,
    config: dict[str, Any],
    steps: int | dict[str, Any],
    *,
    model: Model = function_model,
    windows: Sequence[int] = (),
    shape: tuple[int, ...] = SHAPE,
    step_options: dict[str, Any] | None = None,
    corrects_stride: bool = False,
) -> tuple[float, float]:
    """Compare in both precisions, parallel too for every window; the differences seen.

    float64: 1e-10 from diffusers' code in float64. float32: 2e-5 from diffusers as installed. With
    1 or 2 steps from the largest sigma its own rounding may be larger: then no further from the
    exact result than it is itself, or than two roundings times the solver's largest coefficient.
    """
    steps = dict(num_inference_steps=steps) if isinstance(steps, int) else steps
    options = step_options or {}
    seen = []
    for dtype, most in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
        scheduler = make(name, dtype, **config)
        table = solver_table(scheduler, **steps, **options)
        x, z = noises(table.num_nodes, dtype, shape)
        x = x * table.initial_scale
        theirs = run_loop(scheduler, model, x, z, steps, corrects_stride=corrects_stride, **options)
        assert bool(torch.isfinite(theirs).all())
        shared: dict[str, Any] = dict(shape=shape, solver=table)
        samplers = [SequentialSampler(model, **shared, dtype=dtype)]
        samplers += [
            ParallelSampler(model, **shared, dtype=dtype, window_size=window, tolerance=0.0)
            for window in windows
        ]
        ours = [s.sample(BATCH, x_init=x, noise=z).samples for s in samplers]
        largest = max(difference(samples, theirs) for samples in ours)
        if dtype == torch.float32 and largest > most:
            exact = SequentialSampler(model, **shared, dtype=torch.float64)
            right = exact.sample(BATCH, x_init=x.double(), noise=z.double()).samples
            # a step from one level to a thousandth of it multiplies what is rounded
            rounding = 2 * torch.finfo(dtype).eps * float(table.A_x0.abs().max())
            most = max(most, rounding, difference(theirs, right))
            largest = max(difference(samples, right) for samples in ours)
        assert largest <= most, (name, config, steps, dtype)
        seen.append(largest)
    return seen[0], seen[1]


def table_of(name: str, steps: int | dict[str, Any], **config: Any) -> SolverTable:
    """The table of an installed scheduler with this configuration."""
    given = dict(num_inference_steps=steps) if isinstance(steps, int) else steps
    return solver_table(installed(name)(**config), **given)


def sample(
    table: SolverTable, model: Model = function_model, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """What the sequential sampler makes of the noise that every test has."""
    x, z = noises(table.num_nodes, dtype)
    sampler = SequentialSampler(model, shape=SHAPE, solver=table, dtype=dtype)
    return sampler.sample(BATCH, x_init=x * table.initial_scale, noise=z).samples
