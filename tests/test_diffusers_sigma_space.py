"""Euler, ancestral Euler, Heun, flow matching and EDM's Euler of diffusers against their tables."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("diffusers")

from diffusers_parity import PREDICTIONS, SPACINGS, check_parity, large_model

STEPS = (1, 2, 10, 25)
WINDOWS = {1: (1,), 2: (2,), 10: (3, 10), 25: ()}
SIGMAS: list[dict[str, Any]] = [
    dict(use_karras_sigmas=True),
    dict(use_exponential_sigmas=True),
    dict(use_beta_sigmas=True),
]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_euler(spacing: str, prediction: str, steps: int) -> None:
    config = dict(timestep_spacing=spacing, prediction_type=prediction)
    check_parity("EulerDiscreteScheduler", config, steps, windows=WINDOWS[steps])


@pytest.mark.parametrize(
    "options",
    [
        *SIGMAS,
        dict(use_karras_sigmas=True, sigma_min=0.03, sigma_max=40.0),
        dict(use_karras_sigmas=True, final_sigmas_type="sigma_min"),
        dict(final_sigmas_type="sigma_min"),
        dict(interpolation_type="log_linear"),
        dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1),
        dict(prediction_type="v_prediction", timestep_type="continuous", use_karras_sigmas=True),
        dict(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        ),
    ],
    ids=str,
)
def test_options_of_euler(options: dict[str, Any]) -> None:
    check_parity("EulerDiscreteScheduler", options, 10, windows=(3,))


@pytest.mark.parametrize(
    "given",
    [dict(timesteps=[999, 640, 300, 20]), dict(sigmas=[30.0, 6.0, 1.0, 0.2, 0.0])],
    ids=str,
)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_custom_nodes_of_euler(prediction: str, given: dict[str, Any]) -> None:
    config = dict(prediction_type=prediction)
    check_parity("EulerDiscreteScheduler", config, given, windows=(2,))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_euler_ancestral(spacing: str, prediction: str, steps: int) -> None:
    config = dict(timestep_spacing=spacing, prediction_type=prediction)
    check_parity("EulerAncestralDiscreteScheduler", config, steps, windows=WINDOWS[steps])


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_heun(spacing: str, prediction: str, steps: int) -> None:
    config = dict(timestep_spacing=spacing, prediction_type=prediction)
    check_parity("HeunDiscreteScheduler", config, steps, windows=WINDOWS[steps])


@pytest.mark.parametrize("steps", [2, 10])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_clipped_heun(prediction: str, steps: int) -> None:
    config = dict(prediction_type=prediction, clip_sample=True, clip_sample_range=1.5)
    check_parity("HeunDiscreteScheduler", config, steps, model=large_model, windows=WINDOWS[steps])


@pytest.mark.parametrize("options", SIGMAS, ids=str)
def test_sigmas_of_heun(options: dict[str, Any]) -> None:
    check_parity("HeunDiscreteScheduler", options, 10, windows=(3,))


def test_custom_timesteps_of_heun() -> None:
    check_parity("HeunDiscreteScheduler", {}, dict(timesteps=[999, 600, 200]), windows=(2,))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    "config",
    [
        {},
        dict(shift=3.0),
        dict(stochastic_sampling=True, shift=1.5),
        dict(invert_sigmas=True, shift=2.0),
    ],
    ids=str,
)
def test_flow_matching(config: dict[str, Any], steps: int) -> None:
    check_parity("FlowMatchEulerDiscreteScheduler", config, steps, windows=WINDOWS[steps])


@pytest.mark.parametrize("options", [dict(shift_terminal=0.1), *SIGMAS], ids=str)
def test_levels_of_flow_matching(options: dict[str, Any]) -> None:
    check_parity("FlowMatchEulerDiscreteScheduler", options, 10, windows=(3,))


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shift(kind: str) -> None:
    config = dict(use_dynamic_shifting=True, time_shift_type=kind)
    for given in (dict(num_inference_steps=10), dict(sigmas=[1.0, 0.8, 0.5, 0.1])):
        check_parity("FlowMatchEulerDiscreteScheduler", config, dict(mu=0.9, **given), windows=(3,))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(sigma_schedule="exponential"),
        dict(sigma_data=1.0, rho=5.0, final_sigmas_type="sigma_min"),
    ],
    ids=str,
)
def test_edm_euler(options: dict[str, Any], prediction: str, steps: int) -> None:
    config = dict(prediction_type=prediction, **options)
    check_parity("EDMEulerScheduler", config, steps, windows=WINDOWS[steps])


@pytest.mark.parametrize(
    "name",
    [
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "EDMEulerScheduler",
    ],
)
def test_as_many_steps_as_in_training(name: str) -> None:
    check_parity(name, {}, 1000)
