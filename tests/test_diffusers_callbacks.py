"""What callbacks see of a parallelized pipeline, and what they change."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

import tiny_pipelines as tiny
from parallel_pipelines import (
    CASES,
    STEPS,
    TEXTS,
    assert_same_images,
    call,
    change_latents_once,
    generators,
    is_occupied,
    levels,
    sd,
    sequentially,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    from diffusers.callbacks import SDCFGCutoffCallback

from ctd_engine.integrations.diffusers import parallelize, restore

# SDXL's own conversion of a tokenizer's output
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def seen_latents(pipe, **arguments):
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append((step, int(timestep), tensors["latents"].clone()))
        return tensors

    call(pipe, generators(), callback_on_step_end=look, **arguments)
    return seen


@pytest.mark.parametrize("name", ["sd-eta", "sdxl", "sd3", "flux-true-guidance"])
def test_callbacks_see_the_latents_of_their_step(pipeline, name):
    make, scheduler, arguments = CASES[name]
    pipe = pipeline(make, scheduler)
    expected = seen_latents(pipe, **arguments)
    parallelize(pipe, window_size=4, tolerance=0.0)
    got = seen_latents(pipe, **arguments)
    assert [seen[:2] for seen in got] == [seen[:2] for seen in expected]
    assert len(got) == STEPS
    for (_, _, mine), (_, _, theirs) in zip(got, expected, strict=True):
        assert (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def change_latents_in_place(pipe, step, timestep, tensors):
    if step == 1:
        tensors["latents"].mul_(0.7)
    return tensors


def change_guidance(pipe, step, timestep, tensors):
    if step == 3:
        pipe._guidance_scale = 2.0
    return tensors


def change_prompt(pipe, step, timestep, tensors):
    if step == 2:
        tensors["prompt_embeds"] = tensors["prompt_embeds"].flip(0)
    return tensors


CHANGES = [
    change_latents_once,
    change_latents_in_place,
    change_guidance,
    change_prompt,
    SDCFGCutoffCallback(cutoff_step_ratio=0.5),
]


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("change", CHANGES, ids=lambda c: getattr(c, "__name__", "cutoff"))
def test_what_a_callback_changes_counts_from_there_on(pipeline, change, eta, caplog):
    pipe = pipeline(tiny.stable_diffusion)
    arguments = {**TEXTS, "eta": eta, "callback_on_step_end": change}
    if isinstance(change, SDCFGCutoffCallback):
        # it keeps one row of the conditioning
        arguments["prompt"] = arguments["prompt"][0]
    else:
        arguments["callback_on_step_end_tensor_inputs"] = ["latents", "prompt_embeds"]
    expected = call(pipe, generators(), **arguments).images
    plain = call(pipe, generators(), **{**TEXTS, "prompt": arguments["prompt"]}, eta=eta).images
    assert np.abs(levels(plain) - levels(expected)).max() > 1
    handle = parallelize(pipe, window_size=4, tolerance=0.0)
    with caplog.at_level(logging.WARNING, logger="ctd_engine"):
        got = call(pipe, generators(), **arguments).images
    assert_same_images(got, expected)
    assert len(handle.stats) == 2
    assert "sampled again" in caplog.text


SCHEDULERS = {
    "ancestral": sd("EulerAncestralDiscreteScheduler"),
    "heun": sd("HeunDiscreteScheduler"),
    "dpmsolver++": sd("DPMSolverMultistepScheduler"),
    "dpmsolver++3": sd("DPMSolverMultistepScheduler", solver_order=3),
    "sde-dpmsolver++": sd("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
    "unipc": sd("UniPCMultistepScheduler"),
    "euler-karras": sd("EulerDiscreteScheduler", use_karras_sigmas=True),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_kind_of_scheduler_and_changes_that_it_looks_back_on(pipeline, name):
    pipe = pipeline(tiny.stable_diffusion, SCHEDULERS[name])
    # UniPC in diffusers corrects the latents that it made itself, not those that it is given
    change = change_guidance if name == "unipc" else change_latents_once
    for callback, runs in ((None, 1), (change, 2)):
        arguments = {**TEXTS, "callback_on_step_end": callback}
        generator, own = generators(), generators()
        restore(pipe)
        expected = call(pipe, generator, **arguments).images
        handle = parallelize(pipe, window_size=4, tolerance=0.0)
        assert_same_images(call(pipe, own, **arguments).images, expected)
        assert torch.equal(own.get_state(), generator.get_state())
        assert len(handle.stats) == runs


def test_multistep_schedulers_cannot_begin_in_the_middle(pipeline):
    pipe = pipeline(tiny.stable_diffusion, SCHEDULERS["dpmsolver++"])
    pipe = diffusers.StableDiffusionImg2ImgPipeline(
        **pipe.components, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    parallelize(pipe)
    image = torch.rand(2, 3, 16, 16)
    with pytest.raises(ValueError, match="begins in the middle of its timesteps"):
        call(pipe, generators(), prompt=TEXTS["prompt"], image=image, strength=0.7)


def test_latents_that_change_after_every_step_are_stepped_one_by_one(pipeline):
    pipe = pipeline(tiny.stable_diffusion)

    def change(pipe, step, timestep, tensors):
        return {"latents": 0.98 * tensors["latents"]}

    expected = call(pipe, generators(), **TEXTS, callback_on_step_end=change).images
    handle = parallelize(pipe, window_size=4, tolerance=0.0)
    got = call(pipe, generators(), **TEXTS, callback_on_step_end=change).images
    assert_same_images(got, expected)
    # two tries, then steps
    assert [stats.rounds for stats in handle.stats] == [6, 5, 1, 1, 1, 1]


def test_an_interrupted_pipeline_returns_the_latents_so_far(pipeline):
    pipe = pipeline(tiny.stable_diffusion)

    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = step == 2
        return tensors

    expected = call(pipe, generators(), **TEXTS, callback_on_step_end=stop).images
    parallelize(pipe, window_size=4, tolerance=0.0)
    got = call(pipe, generators(), **TEXTS, callback_on_step_end=stop).images
    assert_same_images(got, expected)
    assert not is_occupied(pipe)
    assert_same_images(
        call(pipe, generators(), **TEXTS).images, sequentially(pipe, generators(), **TEXTS)
    )
