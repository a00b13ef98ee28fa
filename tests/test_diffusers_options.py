"""What `solver_table` accepts and refuses, and that it reads no more than the configuration."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch

from ctd_engine import SequentialSampler
from ctd_engine.integrations.diffusers import solver_table
from ctd_engine.solvers import SolverTable
from diffusers_parity import BATCH, SHAPE, difference, function_model, noises, run_loop

diffusers = pytest.importorskip("diffusers")

NAMES = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
)


def scheduler_of(name: str, **config: Any) -> Any:
    return getattr(diffusers, name)(**config)


@pytest.mark.parametrize("name", NAMES)
def test_every_scheduler_begins_where_its_pipeline_does(name: str) -> None:
    scheduler = scheduler_of(name)
    table = solver_table(scheduler, 10)
    scheduler.set_timesteps(10)
    assert table.num_steps == 10
    assert table.initial_scale == float(getattr(scheduler, "init_noise_sigma", 1.0))
    assert table.model_time.tolist() == scheduler.timesteps.double().tolist()
    if hasattr(scheduler, "scale_model_input"):
        x = torch.ones(1, 1, 1, 1)
        scaled = scheduler.scale_model_input(x, scheduler.timesteps[0])
        assert float(scaled) == pytest.approx(float(table.input_scale[0]), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_scheduler_is_left_alone(name: str) -> None:
    scheduler = scheduler_of(name)
    scheduler.set_timesteps(7)
    before = copy.deepcopy(vars(scheduler))
    first = solver_table(scheduler, 10)
    after = vars(scheduler)
    assert before.keys() == after.keys()
    for key, value in before.items():
        same = torch.equal(value, after[key]) if torch.is_tensor(value) else value == after[key]
        assert same, key
    # nor does what a request has left in it matter
    x, z = noises(7 if name != "HeunDiscreteScheduler" else 13, torch.float32)
    if "Parallel" not in name:
        run_loop(scheduler, lambda x, t: x, x, z, dict(num_inference_steps=7))
    assert_same(solver_table(scheduler, 10), first)


def assert_same(one: SolverTable, other: SolverTable) -> None:
    for name in ("A", "B", "C", "P", "Q", "input_scale", "model_time", "alpha", "sigma"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_a_shift_that_was_set_counts() -> None:
    scheduler = scheduler_of("FlowMatchEulerDiscreteScheduler")
    scheduler.set_shift(5.0)
    expected = solver_table(scheduler_of("FlowMatchEulerDiscreteScheduler", shift=5.0), 8)
    # the class keeps the ends of the schedule of its own shift
    scheduler.set_timesteps(8)
    table = solver_table(scheduler, 8)
    assert table.sigma.tolist() == scheduler.sigmas.double().tolist()
    assert table.sigma[0] == expected.sigma[0]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDPMScheduler", {}),
        ("DDIMScheduler", {}),
        ("DDIMScheduler", dict(clip_sample=False)),
        ("UniPCMultistepScheduler", {}),
        ("UniPCMultistepScheduler", dict(predict_x0=False, final_sigmas_type="sigma_min")),
    ],
    ids=str,
)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_coefficients_are_the_installed_schedulers_to_the_last_digit(
    name: str, config: dict[str, Any], prediction: str
) -> None:
    """These take float64 states as they are: all that they round to float32 is in the table."""
    scheduler = scheduler_of(name, prediction_type=prediction, **config)
    for steps in (10, 200):
        table = solver_table(scheduler, steps)
        x, z = noises(table.num_nodes, torch.float64)
        theirs = run_loop(scheduler, function_model, x, z, dict(num_inference_steps=steps))
        sampler = SequentialSampler(function_model, shape=SHAPE, solver=table, dtype=torch.float64)
        ours = sampler.sample(BATCH, x_init=x, noise=z).samples
        assert difference(ours, theirs) <= 1e-12


@pytest.mark.parametrize(
    ("name", "config", "output"),
    [
        *((name, {}, "epsilon") for name in NAMES if "Flow" not in name and "EDM" not in name),
        ("DDIMScheduler", dict(prediction_type="sample"), "sample"),
        ("DDIMScheduler", dict(prediction_type="v_prediction"), "v_prediction"),
        ("UniPCMultistepScheduler", dict(prediction_type="v_prediction"), "v_prediction"),
        ("FlowMatchEulerDiscreteScheduler", {}, "flow"),
        ("FlowMatchEulerDiscreteScheduler", dict(invert_sigmas=True), "inverted flow"),
        (
            "DPMSolverMultistepScheduler",
            dict(prediction_type="flow_prediction", use_flow_sigmas=True),
            "flow",
        ),
    ],
    ids=str,
)
def test_x0_is_the_data(name: str, config: dict[str, Any], output: str) -> None:
    """P x + Q m, by which first guesses are made, is x0 of x = alpha x0 + sigma eps."""
    table = solver_table(scheduler_of(name, **config), 6)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, table.num_nodes, generator=generator, dtype=torch.float64)
    alpha, sigma = table.alpha[:-1], table.sigma[:-1]
    m = {
        "epsilon": eps,
        "sample": x0,
        "v_prediction": alpha * eps - sigma * x0,
        "flow": eps - x0,
        "inverted flow": x0 - eps,
    }[output]
    x = alpha * x0 + sigma * eps
    # the levels themselves are float32 numbers
    torch.testing.assert_close(table.P * x + table.Q * m, x0, rtol=1e-4, atol=1e-4)


def test_a_subclass_with_the_same_step_has_the_same_table() -> None:
    class Own(diffusers.DDIMScheduler):  # type: ignore[name-defined, misc]
        pass

    assert_same(solver_table(Own(), 5), solver_table(diffusers.DDIMScheduler(), 5))


def test_a_subclass_with_another_step_is_refused() -> None:
    class Own(diffusers.DDIMScheduler):  # type: ignore[name-defined, misc]
        def step(self, *args: Any, **kwargs: Any) -> Any:
            return super().step(*args, **kwargs)

    with pytest.raises(ValueError, match=r"Own has no table: its step is none of those of DDIM"):
        solver_table(Own(), 5)


@pytest.mark.parametrize(
    ("name", "config", "given", "message"),
    [
        ("LMSDiscreteScheduler", {}, dict(num_inference_steps=5), r"LMSDiscrete.* has no table"),
        ("DDPMScheduler", {}, {}, r"give num_inference_steps, timesteps or sigmas"),
        ("DDPMScheduler", {}, dict(num_inference_steps=0), r"must be an integer >= 1, got 0"),
        (
            "DDIMScheduler",
            {},
            dict(sigmas=[1.0]),
            r"takes no sigmas; its set_timesteps takes \[\'num_inference_steps\'\]",
        ),
        ("DDIMScheduler", {}, dict(num_inference_steps=5, eta=1.5), r"eta must be in \[0, 1\]"),
        (
            "EulerDiscreteScheduler",
            {},
            dict(num_inference_steps=5, eta=0.5),
            r"EulerDiscreteScheduler has no eta, got 0.5; it belongs to DDIMScheduler",
        ),
        (
            "EulerDiscreteScheduler",
            {},
            dict(sigmas=[3.0, 0.0, 0.0]),
            r"sigmas must leave noise wherever a step begins",
        ),
        (
            "FlowMatchEulerDiscreteScheduler",
            {},
            dict(sigmas=[1.0, 0.0]),
            r"sigmas must leave noise wherever a step begins",
        ),
        ("EDMEulerScheduler", {}, dict(sigmas=[3.0, 1.0]), r"read as places on its own schedule"),
        (
            "DDPMScheduler",
            dict(variance_type="guessed"),
            dict(num_inference_steps=5),
            r"variance_type must be 'fixed_small', .*got 'guessed'",
        ),
        (
            "EulerAncestralDiscreteScheduler",
            dict(prediction_type="sample"),
            dict(num_inference_steps=5),
            r"prediction_type must be 'epsilon', 'v_prediction' to have a table, got 'sample'",
        ),
        (
            "UniPCMultistepScheduler",
            dict(predict_x0=False, thresholding=True),
            dict(num_inference_steps=5),
            r"thresholding with predict_x0=False is ignored",
        ),
        (
            "DDIMScheduler",
            dict(steps_offset=1),
            dict(num_inference_steps=1000),
            r"timesteps must lie in \[0, 999\], got 1000: with steps_offset 1",
        ),
        (
            "DPMSolverMultistepScheduler",
            dict(timestep_spacing="leading"),
            dict(num_inference_steps=1000),
            r'all 1000 steps .* lie at timestep 0: .*use "trailing"',
        ),
    ],
)
def test_refuses(name: str, config: dict[str, Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solver_table(scheduler_of(name, **config), **given)


def test_refuses_a_solver_within_unipc() -> None:
    scheduler = scheduler_of("UniPCMultistepScheduler", solver_p=diffusers.DDIMScheduler())
    with pytest.raises(ValueError, match=r"solver_p must be None .*leave it out"):
        solver_table(scheduler, 5)


def test_refuses_what_is_no_scheduler() -> None:
    with pytest.raises(TypeError, match=r"scheduler must be a diffusers scheduler, got dict"):
        solver_table({}, 5)


def test_diffusers_is_not_imported() -> None:
    code = "import sys, ctd_engine.integrations.diffusers; assert 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
