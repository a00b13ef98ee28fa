"""DPM-Solver, EDM's DPM-Solver and UniPC of diffusers against their tables."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from ctd_engine.integrations.diffusers import solver_table
from diffusers_parity import (
    PREDICTIONS,
    SPACINGS,
    check_parity,
    function_model,
    large_model,
    make,
    two_outputs,
)

STEPS = (1, 2, 10, 25)
WINDOWS = {1: (1,), 2: (2,), 10: (3, 10), 25: (7,)}
DPM = "DPMSolverMultistepScheduler"
UNIPC = "UniPCMultistepScheduler"


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_dpmsolver(algorithm: str, spacing: str, prediction: str, steps: int) -> None:
    config = dict(algorithm_type=algorithm, timestep_spacing=spacing, prediction_type=prediction)
    check_parity(DPM, config, steps, windows=WINDOWS[steps])


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_orders_of_dpmsolver(algorithm: str, order: int, solver_type: str) -> None:
    config = dict(algorithm_type=algorithm, solver_order=order, solver_type=solver_type)
    for steps in (3, 8, 20):
        check_parity(DPM, config, steps, windows=(4,) if steps == 8 else ())


@pytest.mark.filterwarnings("ignore:.*algorithm_type:FutureWarning")
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ["dpmsolver", "sde-dpmsolver"])
def test_noise_prediction_form(algorithm: str, order: int, solver_type: str) -> None:
    config = dict(
        algorithm_type=algorithm,
        solver_order=order,
        solver_type=solver_type,
        final_sigmas_type="sigma_min",
    )
    if (algorithm, order) == ("sde-dpmsolver", 3):
        scheduler = make(DPM, torch.float64, **config)
        with pytest.raises(ValueError, match=r"solver_order must be 1, 2.*has order 3 too"):
            solver_table(scheduler, 20)
        return
    for prediction in PREDICTIONS:
        check_parity(DPM, dict(prediction_type=prediction, **config), 20, windows=(4,))


@pytest.mark.parametrize(
    "options",
    [
        dict(use_karras_sigmas=True),
        dict(use_exponential_sigmas=True),
        dict(use_beta_sigmas=True),
        dict(use_lu_lambdas=True),
        dict(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"),
        dict(lower_order_final=False),
        dict(lower_order_final=False, final_sigmas_type="sigma_min"),
        dict(euler_at_final=True, final_sigmas_type="sigma_min", lower_order_final=False),
        dict(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1),
        dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1),
        dict(thresholding=True, dynamic_thresholding_ratio=0.7, sample_max_value=9.0),
        dict(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_options_of_dpmsolver(algorithm: str, options: dict[str, Any]) -> None:
    config = dict(algorithm_type=algorithm, **options)
    check_parity(DPM, config, 10, model=large_model, windows=(3,))


@pytest.mark.parametrize("name", [DPM, UNIPC])
def test_last_step_of_no_length(name: str) -> None:
    check_parity(name, dict(final_sigmas_type="sigma_min", use_karras_sigmas=True), 10)


def test_custom_timesteps_of_dpmsolver() -> None:
    check_parity(DPM, {}, dict(timesteps=[999, 700, 300, 50]), windows=(2,))


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_dpmsolver_leaves_out_a_learned_variance(variance: str) -> None:
    # diffusers keeps the first three channels, whatever their number: 3 here
    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return two_outputs(x, t)

    check_parity(DPM, dict(variance_type=variance), 10, model=model, windows=(3,), shape=(3, 3, 2))


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_dpmsolver(prediction: str, algorithm: str, order: int, solver_type: str) -> None:
    name = "EDMDPMSolverMultistepScheduler"
    config = dict(
        prediction_type=prediction,
        algorithm_type=algorithm,
        solver_order=order,
        solver_type=solver_type,
    )
    if (algorithm, order) == ("sde-dpmsolver++", 3):
        with pytest.raises(ValueError, match=r"solver_order must be 1, 2.*has order 3 too"):
            solver_table(make(name, torch.float64, **config), 20)
        return
    for steps in (1, 2, 20):
        check_parity(name, config, steps, windows=(4,))


@pytest.mark.parametrize(
    "options",
    [
        dict(sigma_schedule="exponential"),
        dict(final_sigmas_type="sigma_min"),
        dict(lower_order_final=False),
        dict(euler_at_final=True),
        dict(thresholding=True, dynamic_thresholding_ratio=0.7, sample_max_value=9.0),
    ],
    ids=str,
)
def test_options_of_edm_dpmsolver(options: dict[str, Any]) -> None:
    check_parity("EDMDPMSolverMultistepScheduler", options, 10, model=large_model, windows=(3,))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_unipc(spacing: str, prediction: str, steps: int) -> None:
    config = dict(timestep_spacing=spacing, prediction_type=prediction)
    check_parity(UNIPC, config, steps, windows=WINDOWS[steps])


@pytest.mark.parametrize("disabled", [[], [0, 2, 3]], ids=str)
@pytest.mark.parametrize("predicts_x0", [True, False])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
def test_forms_of_unipc(
    solver_type: str, order: int, predicts_x0: bool, disabled: list[int]
) -> None:
    for prediction in PREDICTIONS:
        config = dict(
            solver_type=solver_type,
            solver_order=order,
            predict_x0=predicts_x0,
            disable_corrector=disabled,
            prediction_type=prediction,
            final_sigmas_type="sigma_min",
        )
        check_parity(UNIPC, config, 12, windows=(4,))


@pytest.mark.parametrize(
    "options",
    [
        dict(use_karras_sigmas=True),
        dict(use_exponential_sigmas=True),
        dict(use_beta_sigmas=True),
        dict(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"),
        dict(lower_order_final=False, final_sigmas_type="sigma_min"),
        dict(thresholding=True, dynamic_thresholding_ratio=0.7, sample_max_value=9.0),
        dict(solver_order=3, disable_corrector=list(range(10))),
        dict(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        ),
    ],
    ids=str,
)
def test_options_of_unipc(options: dict[str, Any]) -> None:
    check_parity(UNIPC, options, 10, model=large_model, windows=(3,))


def test_order_3_of_unipc_fits_few_steps_only() -> None:
    config = dict(solver_order=3)
    check_parity(UNIPC, config, 4, windows=(2,))
    with pytest.raises(ValueError, match=r"looks back on 4 outputs at step 3.*solver_order=2"):
        solver_table(make(UNIPC, torch.float64, **config), 6)


@pytest.mark.parametrize("name", [DPM, UNIPC])
def test_as_many_steps_as_in_training(name: str) -> None:
    config = dict(timestep_spacing="trailing")
    check_parity(name, config, 1000, model=function_model)
