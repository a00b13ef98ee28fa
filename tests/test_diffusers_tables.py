"""DDPM and DDIM of diffusers against their tables, sequential and parallel."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("diffusers")

from diffusers_parity import (
    PREDICTIONS,
    SPACINGS,
    check_parity,
    function_model,
    large_model,
    two_outputs,
)

STEPS = (1, 2, 10, 25)
WINDOWS = {1: (1,), 2: (2,), 10: (3, 10), 25: (7,)}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddpm(spacing: str, prediction: str, steps: int) -> None:
    config = dict(timestep_spacing=spacing, prediction_type=prediction)
    check_parity("DDPMScheduler", config, steps, windows=WINDOWS[steps])


@pytest.mark.parametrize(
    "options",
    [
        dict(clip_sample=False),
        dict(clip_sample_range=2.5),
        dict(variance_type="fixed_small_log"),
        dict(variance_type="fixed_large"),
        dict(thresholding=True, sample_max_value=1.5),
        dict(thresholding=True, dynamic_thresholding_ratio=0.7, sample_max_value=9.0),
        dict(beta_schedule="scaled_linear"),
        dict(beta_schedule="squaredcos_cap_v2"),
        dict(beta_schedule="sigmoid"),
        dict(trained_betas=[0.01 + 0.0001 * i for i in range(1000)]),
        dict(num_train_timesteps=25),
        dict(steps_offset=1),
    ],
    ids=str,
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_options_of_ddpm(prediction: str, options: dict[str, Any]) -> None:
    config = dict(prediction_type=prediction, **options)
    check_parity("DDPMScheduler", config, 25, model=large_model, windows=(7,))


@pytest.mark.parametrize("bound", [{}, dict(clip_sample=False), dict(thresholding=True)], ids=str)
@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_learned_variance(variance: str, bound: dict[str, Any]) -> None:
    for steps in (2, 10):
        config = dict(variance_type=variance, **bound)
        check_parity("DDPMScheduler", config, steps, model=two_outputs, windows=(3, 10))


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_zero_terminal_snr(name: str, prediction: str) -> None:
    config = dict(
        rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type=prediction
    )
    check_parity(name, config, 10, windows=(3,))


@pytest.mark.parametrize("timesteps", [[999], [999, 500, 3], [901, 900, 640, 30, 0]], ids=str)
def test_custom_timesteps_of_ddpm(timesteps: list[int]) -> None:
    check_parity("DDPMScheduler", {}, dict(timesteps=timesteps), windows=(2,))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim(spacing: str, prediction: str, eta: float, steps: int) -> None:
    check_parity(
        "DDIMScheduler",
        dict(timestep_spacing=spacing, prediction_type=prediction),
        steps,
        windows=WINDOWS[steps],
        step_options=dict(eta=eta),
        # its own stride passes over the timesteps of "linspace"
        corrects_stride=spacing == "linspace",
    )


@pytest.mark.parametrize("uses_clipped", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        dict(clip_sample=False),
        dict(clip_sample_range=2.5),
        dict(thresholding=True, dynamic_thresholding_ratio=0.7, sample_max_value=9.0),
        dict(set_alpha_to_one=False),
        dict(set_alpha_to_one=False, steps_offset=1),
        dict(beta_schedule="scaled_linear"),
        dict(num_train_timesteps=25),
    ],
    ids=str,
)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_options_of_ddim(prediction: str, options: dict[str, Any], uses_clipped: bool) -> None:
    check_parity(
        "DDIMScheduler",
        dict(prediction_type=prediction, **options),
        25,
        model=large_model,
        windows=(7,),
        step_options=dict(eta=0.5, use_clipped_model_output=uses_clipped),
    )


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_as_many_steps_as_in_training(name: str) -> None:
    check_parity(name, dict(clip_sample=False), 1000, model=function_model)
