"""What users of diffusers' schedulers have reported as broken, one test each: right here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ctd_engine import ParallelSampler, SequentialSampler
from ctd_engine.integrations.diffusers import solver_table
from ctd_engine.solvers import SolverTable
from diffusers_parity import (
    BATCH,
    NAMES,
    SHAPE,
    difference,
    function_model,
    large_model,
    noises,
    sample,
    table_of,
)

diffusers = pytest.importorskip("diffusers")

Model = Callable[[Tensor, Tensor], Tensor]
WITH_ZERO_SNR = (
    "DDPMScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", NAMES)
def test_no_nan_at_the_last_step(name: str, steps: int) -> None:
    """diffusers #9007, #6949, #10748."""
    table = table_of(name, steps)
    assert float(table.sigma[-1]) == 0.0
    assert bool(torch.isfinite(sample(table)).all())


@pytest.mark.parametrize("lowers_order", [True, False])
@pytest.mark.parametrize("predicts_x0", [True, False])
@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
def test_unipc_reaches_sigma_zero_in_every_form(
    solver_type: str, predicts_x0: bool, lowers_order: bool
) -> None:
    table = table_of(
        "UniPCMultistepScheduler",
        8,
        solver_type=solver_type,
        predict_x0=predicts_x0,
        lower_order_final=lowers_order,
    )
    # x0 and eps that never change: the last step returns x0 whatever the form
    k = torch.arange(table.order)
    levels = table.alpha[7 - k], table.sigma[7 - k]
    assert float(table.sigma[-1]) == 0.0
    assert float(table.A_x0[-1] @ levels[0] + table.B_x0[-1].sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(table.A_x0[-1] @ levels[1]) == pytest.approx(0.0, abs=1e-5)
    assert bool(torch.isfinite(sample(table)).all())


@pytest.mark.parametrize("name", [n for n in NAMES if "FlowMatch" not in n and "DDPM" not in n])
def test_leftover_noise_only_where_it_is_asked_for(name: str) -> None:
    """diffusers #5689."""
    if name in ("HeunDiscreteScheduler", "EulerAncestralDiscreteScheduler"):
        # they have no such option
        assert float(table_of(name, 5).sigma[-1]) == 0.0
        return
    if name == "DDIMScheduler":
        scheduler = diffusers.DDIMScheduler(set_alpha_to_one=False)
        left = float((1 - scheduler.alphas_cumprod[0]) ** 0.5)
        table = solver_table(scheduler, 5)
    else:
        scheduler = getattr(diffusers, name)(final_sigmas_type="sigma_min")
        scheduler.set_timesteps(5)
        left = float(scheduler.sigmas[-1])
        table = solver_table(scheduler, 5)
    assert left > 0.0
    ratio = float(table.sigma[-1] / table.alpha[-1])
    assert ratio == pytest.approx(left, rel=1e-4)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
@pytest.mark.parametrize("timesteps", [[999, 499, 99], [999, 500, 1]])
def test_ddpm_adds_no_noise_to_the_sample(timesteps: list[int], variance: str) -> None:
    """diffusers adds the noise of the last timestep, unless that is 0."""
    table = table_of("DDPMScheduler", dict(timesteps=timesteps), variance_type=variance)
    assert float(table.C[-2]) > 1e-3
    assert float(table.C[-1]) < 2e-10


@pytest.mark.parametrize("name", WITH_ZERO_SNR)
def test_epsilon_at_zero_terminal_snr_is_refused(name: str) -> None:
    """diffusers #5103, #3851."""
    config = dict(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ValueError, match=r"\"epsilon\" says nothing about the data at the zero"):
        table_of(name, 10, **config)
    table = table_of(name, 10, prediction_type="v_prediction", **config)
    assert bool(torch.isfinite(sample(table)).all())
    # a start below the last timestep has a signal
    if name != "EulerAncestralDiscreteScheduler":
        config["timestep_spacing"] = "leading"
        assert bool(torch.isfinite(sample(table_of(name, 10, **config))).all())


def test_states_beyond_half_precision() -> None:
    """diffusers #6981: sigma = 70000 does not fit into fp16, and the model's input does."""
    table = table_of(
        "EulerDiscreteScheduler",
        12,
        prediction_type="sample",
        use_karras_sigmas=True,
        sigma_min=0.03,
        sigma_max=70000.0,
    )
    x, _ = noises(1, torch.float32)
    ends = []
    for model_dtype in (torch.float16, torch.float32):
        sampler = SequentialSampler(
            function_model, shape=SHAPE, solver=table, model_dtype=model_dtype
        )
        ends.append(sampler.sample(BATCH, x_init=x * table.initial_scale).samples)
    assert float(table.initial_scale) > 65504.0
    assert bool(torch.isfinite(ends[0]).all())
    assert difference(ends[0], ends[1].double()) < 0.05


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler"])
def test_tables_in_half_precision_do_not_matter(name: str) -> None:
    """diffusers #3056, #4254."""
    scheduler = getattr(diffusers, name)()
    expected = solver_table(scheduler, 10)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.half()
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.half()
    table = solver_table(scheduler, 10)
    assert torch.equal(table.A, expected.A)
    assert torch.equal(table.B, expected.B)


def test_timesteps_reach_a_model_in_bf16_whole() -> None:
    """diffusers #9405: 999 and 997 are one number in bf16."""
    told: list[float] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        assert x.dtype == torch.bfloat16
        told.append(float(t[0]))
        return function_model(x, t)

    table = table_of("DDPMScheduler", dict(timesteps=[999, 997, 501, 3]))
    sampler = SequentialSampler(model, shape=SHAPE, solver=table, model_dtype=torch.bfloat16)
    sampler.sample(BATCH, seed=0)
    assert told == [999.0, 997.0, 501.0, 3.0]


def test_requests_share_no_state() -> None:
    """diffusers #7851, #5749, #3672: one scheduler for two loops at once."""
    scheduler = diffusers.DPMSolverMultistepScheduler()
    alone = [sample(solver_table(scheduler, steps)) for steps in (6, 9)]
    tables = [solver_table(scheduler, steps) for steps in (6, 9)]
    # while the first is at work, each of its model calls runs the second to its end
    ends: list[Tensor] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        ends.append(sample(tables[1]))
        return function_model(x, t)

    assert torch.equal(sample(tables[0], model), alone[0])
    assert all(torch.equal(end, alone[1]) for end in ends)


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler"])
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    """diffusers #6222, #2659."""
    table = table_of(name, 10)
    shared: dict[str, Any] = dict(shape=SHAPE, solver=table, dtype=torch.float64)
    for sampler in (
        SequentialSampler(function_model, **shared),
        ParallelSampler(function_model, **shared, window_size=4, tolerance=0.0),
    ):
        both = sampler.sample(3, seeds=[5, 6, 7]).samples
        alone = sampler.sample(1, seeds=[6]).samples
        assert torch.allclose(both[1], alone[0], rtol=1e-12, atol=1e-12)


def told_as(prediction: str, table: SolverTable) -> Model:
    """One model of x0, whose output is read as `prediction` at the table's levels."""
    # in the variance-preserving scale of the model's input
    alpha, sigma = (v[:-1] * table.input_scale for v in (table.alpha, table.sigma))
    levels = dict(zip(table.model_time.tolist(), zip(alpha, sigma, strict=True), strict=True))

    def model(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = levels[float(t[0])]
        x0 = large_model(x, t)
        eps = (x - alpha * x0) / sigma
        return {"sample": x0, "epsilon": eps}.get(prediction, alpha * eps - sigma * x0)

    return model


@pytest.mark.parametrize("clips", [True, False])
@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "HeunDiscreteScheduler"])
def test_predictions_and_clipping_commute(name: str, clips: bool) -> None:
    """diffusers #2094: one model, told in three ways, is one sampler."""
    ends = {}
    for prediction in ("sample", "epsilon", "v_prediction"):
        table = table_of(name, 12, prediction_type=prediction, clip_sample=clips)
        ends[prediction] = sample(table, told_as(prediction, table))
    assert difference(ends["epsilon"], ends["sample"]) < 1e-4
    assert difference(ends["v_prediction"], ends["sample"]) < 1e-4


def test_logarithm_of_a_fixed_large_variance() -> None:
    """diffusers takes the root of log(beta), which is NaN."""
    logs = table_of("DDPMScheduler", 10, variance_type="fixed_large_log")
    plain = table_of("DDPMScheduler", 10, variance_type="fixed_large")
    assert torch.equal(logs.C, plain.C)


def test_learned_variance_of_four_channels_with_dpmsolver() -> None:
    """diffusers keeps three channels, whatever their number."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([function_model(x, t), torch.full_like(x, 7.0)], dim=1)

    ends = []
    for kind, of in (("learned_range", model), (None, function_model)):
        table = table_of("DPMSolverMultistepScheduler", 8, variance_type=kind)
        x = noises(1, torch.float64, (4, 3, 3))[0]
        sampler = SequentialSampler(of, shape=(4, 3, 3), solver=table, dtype=torch.float64)
        ends.append(sampler.sample(BATCH, x_init=x).samples)
    assert torch.equal(ends[0], ends[1])
