"""Pipelines, calls and comparisons that the tests of `parallelize` share."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

import tiny_pipelines as tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

from ctd_engine.integrations.diffusers import restore

STEPS = 6
TEXTS = {"prompt": ["a red cat", "the moon"], "height": 16, "width": 16}
SMALL = {"prompt": ["a red cat", "the moon"], "height": 8, "width": 8}
NEGATIVE = {"negative_prompt": ["blue", "a dog"]}
FLUX = {**SMALL, "max_sequence_length": 8}
# weights by which a model listens to texts and labels
TOLD = ("attn2", "add_embedding", "context_embedder", "text_embedder", "class_embedder")


@cache
def made(make, **options):
    """A pipeline with weights that make its model answer strongly to all that it is told."""
    pipe = tiny.seeded(make, **options)
    model = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(6.0 if any(part in name for part in TOLD) else 1.5)
    return pipe


def lend():
    """The `pipeline` fixture: makes pipelines and gives them back as they were."""
    taken = []

    def get(make, scheduler=None, **options):
        pipe = made(make, **options)
        taken.append((pipe, pipe.scheduler))
        if scheduler is not None:
            pipe.scheduler = scheduler
        return pipe

    yield get
    for pipe, scheduler in reversed(taken):
        restore(pipe)
        pipe.scheduler = scheduler


def call(pipe, generator=None, **arguments):
    arguments = {"num_inference_steps": STEPS, "output_type": "np", **arguments}
    if "generator" in arguments or not hasattr(type(pipe).__call__, "__wrapped__"):
        return pipe(**arguments)
    return pipe(**arguments, generator=generator)


def generators(count=None):
    made = [torch.Generator().manual_seed(11 + i) for i in range(count or 1)]
    return made[0] if count is None else made


def levels(images):
    return np.round(255 * np.asarray(images)).astype(int)


def assert_same_images(got, expected):
    got, expected = levels(got), levels(expected)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1
    # images that the test could tell apart
    assert len(expected) == 1 or np.abs(expected[0] - expected[-1]).max() > 20


def sd(kind, **options):
    return tiny.scaled(getattr(diffusers, kind), **options)


CASES = {
    "ddpm": (tiny.ddpm, None, {"batch_size": 3}),
    "ddpm-fixed-large": (
        tiny.ddpm,
        diffusers.DDPMScheduler(variance_type="fixed_large", timestep_spacing="trailing"),
        {"batch_size": 2},
    ),
    "ddim": (tiny.ddim, None, {"batch_size": 2}),
    "ddim-eta": (tiny.ddim, None, {"batch_size": 2, "eta": 0.6}),
    "ddim-clipped-output": (
        tiny.ddim,
        None,
        {"batch_size": 2, "eta": 0.6, "use_clipped_model_output": True},
    ),
    "sd-guided": (tiny.stable_diffusion, None, {**TEXTS, **NEGATIVE}),
    "sd-unguided": (tiny.stable_diffusion, None, {**TEXTS, "guidance_scale": 1.0}),
    "sd-eta": (
        tiny.stable_diffusion,
        None,
        {**TEXTS, "eta": 1.0, "num_images_per_prompt": 2, "guidance_scale": 3.3},
    ),
    "sd-ddpm": (tiny.stable_diffusion, sd("DDPMScheduler"), {**TEXTS, **NEGATIVE}),
    "sd-euler": (tiny.stable_diffusion, sd("EulerDiscreteScheduler"), TEXTS),
    "sd-v": (
        tiny.stable_diffusion,
        sd("DDIMScheduler", prediction_type="v_prediction", rescale_betas_zero_snr=True),
        TEXTS,
    ),
    "sdxl": (tiny.stable_diffusion_xl, None, {**TEXTS, **NEGATIVE}),
    "sdxl-sizes": (
        tiny.stable_diffusion_xl,
        sd("DDIMScheduler"),
        {
            **TEXTS,
            "num_images_per_prompt": 2,
            "original_size": (40, 24),
            "negative_original_size": (8, 8),
            "negative_target_size": (9, 9),
        },
    ),
    "sdxl-denoising-end": (tiny.stable_diffusion_xl, None, {**TEXTS, "denoising_end": 0.6}),
    "dit": (tiny.dit_pipeline, None, {"class_labels": [3, 207]}),
    "dit-unguided": (tiny.dit_pipeline, None, {"class_labels": [3, 207], "guidance_scale": 1.0}),
    "sd3": (tiny.stable_diffusion_3, None, {**SMALL, **NEGATIVE, "num_images_per_prompt": 2}),
    "sd3-unguided": (tiny.stable_diffusion_3, None, {**SMALL, "guidance_scale": 1.0}),
    "sd3-skipped-layers": (
        tiny.stable_diffusion_3,
        None,
        {**SMALL, "skip_guidance_layers": [0], "skip_layer_guidance_stop": 0.5},
    ),
    # as many rows as tokens of text, whose positions all rows share
    "flux": (tiny.flux, None, {**FLUX, "num_images_per_prompt": 4}),
    "flux-true-guidance": (tiny.flux, None, {**FLUX, **NEGATIVE, "true_cfg_scale": 2.5}),
}


def change_latents_once(pipe, step, timestep, tensors):
    if step == 2:
        tensors["latents"] = tensors["latents"] * 0.7
    return tensors


def is_occupied(pipe):
    model = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    return "forward" in vars(model) or "step" in vars(pipe.scheduler)


def sequentially(pipe, generator, **arguments):
    bar = vars(pipe).pop("progress_bar", None)
    try:
        return call(pipe, generator, **arguments).images
    finally:
        if bar is not None:
            pipe.progress_bar = bar
