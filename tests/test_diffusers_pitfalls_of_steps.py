"""Reported trouble with the order of diffusers' timesteps, one test each: right here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ctd_engine import ParallelSampler
from ctd_engine.integrations.diffusers import solver_table
from diffusers_parity import (
    BATCH,
    NAMES,
    SHAPE,
    difference,
    function_model,
    noises,
    sample,
    table_of,
)

diffusers = pytest.importorskip("diffusers")

Model = Callable[[Tensor, Tensor], Tensor]


def ddim_by_index(scheduler: Any, timesteps: list[int], end: float, model: Model) -> Tensor:
    """Song et al. 2020, eq. 12 with eta = 0, from one given timestep to the next."""
    levels = [*(float(scheduler.alphas_cumprod[t]) for t in timesteps), end]
    x, _ = noises(1, torch.float64)
    for t, here, there in zip(timesteps, levels, levels[1:], strict=False):
        eps = model(x, torch.full((BATCH,), float(t), dtype=torch.float64))
        x0 = (x - math.sqrt(1.0 - here) * eps) / math.sqrt(here)
        x = math.sqrt(there) * x0 + math.sqrt(1.0 - there) * eps
    return x


@pytest.mark.parametrize(
    ("spacing", "steps"), [("linspace", 10), ("linspace", 3), ("trailing", 3), ("trailing", 7)]
)
def test_ddim_goes_to_the_next_timestep(
    spacing: str, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    """diffusers #9261, #12633, #14357: a fixed stride goes past it."""
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing, clip_sample=False)
    table = solver_table(scheduler, steps)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.tolist()
    levels = scheduler.alphas_cumprod[timesteps].double()
    assert torch.allclose(table.alpha[:-1].square(), levels, rtol=1e-6)
    expected = ddim_by_index(scheduler, timesteps, 1.0, function_model)
    assert difference(sample(table), expected) < 1e-5
    assert "steps by a fixed stride" in caplog.text
    caplog.clear()
    solver_table(diffusers.DDIMScheduler(), steps)
    solver_table(diffusers.DDIMScheduler(timestep_spacing="trailing"), 10)
    assert not caplog.text


@pytest.mark.parametrize("name", [n for n in NAMES if "EDM" not in n])
def test_as_many_steps_as_in_training(name: str) -> None:
    """diffusers #10003: with its default spacing the multistep solvers divide by 0."""
    table = table_of(name, 60, num_train_timesteps=60)
    finite = sample(table)
    assert bool(torch.isfinite(finite).all())
    if "Multistep" in name:
        assert len(set(table.model_time.tolist())) == 59
        # the timestep that comes twice changes next to nothing
        once = sample(table_of(name, 59, num_train_timesteps=60))
        assert difference(finite, once) < 0.01


def test_timesteps_that_come_twice() -> None:
    """diffusers #5687, #12771: levels are told apart by their place and not by their timestep."""
    scheduler = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True)
    table = solver_table(scheduler, 200)
    assert len(set(table.model_time.tolist())) < 200
    assert bool(((table.sigma / table.alpha).diff() < 0).all())
    scheduler.set_timesteps(200)
    assert torch.allclose(table.sigma / table.alpha, scheduler.sigmas.double(), rtol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        # their final alpha is 1 whatever set_alpha_to_one says
        dict(set_alpha_to_one=False),
        # their stride is fixed
        dict(timestep_spacing="linspace"),
        dict(timestep_spacing="trailing"),
        {},
    ],
    ids=str,
)
def test_what_the_parallel_ddim_of_diffusers_is_for(config: dict[str, Any]) -> None:
    scheduler = diffusers.DDIMParallelScheduler(clip_sample=False, **config)
    table = solver_table(scheduler, 7)
    scheduler.set_timesteps(7)
    expected = ddim_by_index(
        scheduler,
        scheduler.timesteps.tolist(),
        float(scheduler.final_alpha_cumprod),
        function_model,
    )
    x, _ = noises(7, torch.float64)
    for window in (1, 3, 7):
        sampler = ParallelSampler(
            function_model,
            shape=SHAPE,
            solver=table,
            dtype=torch.float64,
            window_size=window,
            tolerance=0.0,
        )
        ours = sampler.sample(BATCH, x_init=x).samples
        assert difference(ours, expected) < 1e-5
        # not DDIM nearly: the sequential sampler's numbers
        assert difference(ours, sample(table)) < 1e-14
        if window == 1:
            assert torch.equal(ours, sample(table))


def test_what_the_parallel_ddpm_of_diffusers_is_for() -> None:
    """Its stride is fixed too: the table is the one of the ordinary scheduler."""
    for config in (dict(timestep_spacing="linspace"), dict(timestep_spacing="trailing")):
        table = table_of("DDPMParallelScheduler", 7, **config)
        expected = sample(table_of("DDPMScheduler", 7, **config))
        x, z = noises(7, torch.float64)
        for window in (1, 3, 7):
            sampler = ParallelSampler(
                function_model,
                shape=SHAPE,
                solver=table,
                dtype=torch.float64,
                window_size=window,
                tolerance=0.0,
            )
            ours = sampler.sample(BATCH, x_init=x, noise=z).samples
            assert difference(ours, expected) < 1e-14
