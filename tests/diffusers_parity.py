"""diffusers' own schedulers stepping in a loop, for comparison, and schedulers in float64."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch

from ctd_engine import ParallelSampler, SequentialSampler
from ctd_engine.integrations.diffusers import solver_table

SHAPE = (2, 3, 3)
BATCH = 2
Model = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@cache
def in_float64(name: str) -> Any:
    """diffusers' scheduler of this name with every float32 of its source read as float64.

    Most of them take float64 states to float32 within `step`, so that the class as installed
    cannot be compared to more than 7 digits.
    """
    installed = getattr(importlib.import_module("diffusers"), name)
    module = sys.modules[installed.__module__]
    source = importlib.util.find_spec(module.__name__)
    assert source is not None
    assert source.origin is not None
    with open(source.origin) as file:
        text = file.read().replace("torch.float32", "torch.float64")
    text = text.replace("np.float32", "np.float64").replace("torch.Tensor([", "torch.asarray([")
    double = ModuleType(f"{module.__name__}_in_float64")
    double.__package__ = module.__package__
    double.__file__ = source.origin
    sys.modules[double.__name__] = double
    exec(compile(text, source.origin, "exec"), double.__dict__)
    return getattr(double, name)


def make(name: str, dtype: torch.dtype, **config: Any) -> Any:
    """A scheduler whose own arithmetic has this precision."""
    kind = in_float64(name) if dtype == torch.float64 else _installed(name)
    return kind(**config)


def _installed(name: str) -> Any:
    return getattr(importlib.import_module("diffusers"), name)


def function_model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A smooth nonlinear function of x and t whose trajectories stay of order one."""
    t = t.to(x.dtype).view(-1, *[1] * (x.dim() - 1))
    other = x.flip(-1).roll(1, 1)
    return 0.7 * torch.sin(1.3 * x + 0.01 * t) + 0.3 * torch.tanh(other) * torch.cos(0.003 * t)


def two_outputs(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The same with a second half of channels in [-1, 1]."""
    return torch.cat(
        [function_model(x, t), torch.sin(2.0 * x.flip(-1) + 0.005 * t[:, None, None, None])], 1
    )


def noises(count: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """x_init [B, *shape] of unit scale and z [N, B, *shape], drawn in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, *SHAPE, generator=generator, dtype=torch.float64)
    z = torch.randn(count, BATCH, *SHAPE, generator=generator, dtype=torch.float64)
    return x.to(dtype), z.to(dtype)


class _Draws:
    """Stands in for a scheduler module's `randn_tensor`: hands out z in order."""

    def __init__(self, z: torch.Tensor) -> None:
        self.z, self.node = z, 0

    def __call__(self, shape: Any, *_: Any, dtype: torch.dtype, **__: Any) -> torch.Tensor:
        # a learned variance asks for noise of the output's shape; its second half is never used
        return self.z[self.node].to(dtype).expand(shape)


def run_loop(
    scheduler: Any,
    model: Model,
    x: torch.Tensor,
    z: torch.Tensor,
    steps: dict[str, Any],
    **options: Any,
) -> torch.Tensor:
    """What a pipeline does, with the given noise: the state after every call of `step`."""
    scheduler.set_timesteps(**steps)
    module = sys.modules[type(scheduler).__module__]
    draws, before = _Draws(z), getattr(module, "randn_tensor", None)
    module.randn_tensor = draws
    try:
        x = x * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else x
        for i, t in enumerate(scheduler.timesteps):
            draws.node = i
            scaled = scheduler.scale_model_input(x, t) if _scales(scheduler) else x
            m = model(scaled, t.to(x.dtype).expand(len(x)))
            x = scheduler.step(m, t, x, **options, return_dict=False)[0]
    finally:
        module.randn_tensor = before
    return x


def _scales(scheduler: Any) -> bool:
    return hasattr(scheduler, "scale_model_input")


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def check(
    name: str,
    config: dict[str, Any],
    steps: dict[str, Any],
    dtype: torch.dtype,
    *,
    model: Model = function_model,
    windows: tuple[int, ...] = (),
    table_options: dict[str, Any] | None = None,
    step_options: dict[str, Any] | None = None,
    stride: Callable[[Any], None] | None = None,
) -> float:
    """The largest difference of our samplers from diffusers' loop; windows add parallel ones."""
    scheduler = make(name, dtype, **config)
    table = solver_table(scheduler, **steps, **(table_options or {}))
    x, z = noises(table.num_nodes, dtype)
    theirs = run_loop(scheduler, model, x, z, steps, **(step_options or {}))
    start = x * table.initial_scale
    shared: dict[str, Any] = dict(shape=SHAPE, solver=table, dtype=dtype)
    drawn: dict[str, Any] = dict(x_init=start, noise=z)
    samplers = [SequentialSampler(model, **shared)]
    samplers += [
        ParallelSampler(model, **shared, window_size=size, tolerance=0.0) for size in windows
    ]
    assert bool(torch.isfinite(theirs).all())
    return max(difference(s.sample(BATCH, **drawn).samples, theirs) for s in samplers)
