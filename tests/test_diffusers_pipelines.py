"""`parallelize(pipe)` gives what the pipeline itself gives, whatever it is asked."""

from __future__ import annotations

import gc
import io
import json
import logging
import re
import runpy
import warnings
import weakref
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

import tiny_pipelines as tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    from diffusers.callbacks import SDCFGCutoffCallback

from ctd_engine.integrations.diffusers import parallelize, restore
from ctd_engine.integrations.diffusers._mix import probe

# SDXL's own conversion of a tokenizer's output
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

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


@pytest.fixture
def pipeline():
    """Makes pipelines and gives them back as they were."""
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


@pytest.mark.parametrize("name", CASES)
def test_images_are_the_pipelines_own(pipeline, name):
    make, scheduler, arguments = CASES[name]
    pipe = pipeline(make, scheduler)
    generator = generators()
    expected = call(pipe, generator, **arguments)
    handle = parallelize(pipe, window_size=4, tolerance=0.0)
    own = generators()
    got = call(pipe, own, **arguments)
    assert type(got) is type(expected)
    assert_same_images(got.images, expected.images)
    # what is drawn from the generator next is what would have been
    assert torch.equal(own.get_state(), generator.get_state())
    assert handle.stats


@pytest.mark.parametrize("name", ["sd-guided", "sdxl", "dit", "sd3", "flux"])
def test_images_depend_on_what_the_model_is_told(pipeline, name):
    """Otherwise equal images would say nothing of conditioning."""
    make, scheduler, arguments = CASES[name]
    pipe = pipeline(make, scheduler)
    if "num_images_per_prompt" in arguments:
        arguments = {**arguments, "num_images_per_prompt": 1}
    # both images begin with the same latents
    same = [torch.Generator().manual_seed(1) for _ in range(2)]
    images = levels(call(pipe, same, **arguments).images)
    assert np.abs(images[0] - images[1]).max() > 10


def test_guidance_embedded_in_the_model(pipeline):
    pipe = pipeline(tiny.flux, guidance_embeds=True)
    expected = call(pipe, generators(), **FLUX, guidance_scale=3.0).images
    parallelize(pipe, window_size=3, tolerance=0.0)
    got = call(pipe, generators(), **FLUX, guidance_scale=3.0).images
    assert_same_images(got, expected)
    other = call(pipe, generators(), **FLUX, guidance_scale=9.0).images
    assert np.abs(levels(other) - levels(expected)).max() > 1


def test_rows_go_to_the_images_in_turns(pipeline):
    """Rounds of as many rows have other rows, each with the conditioning of its image."""
    pipe = pipeline(tiny.stable_diffusion)
    arguments = {**TEXTS, "prompt": ["a red cat", "the moon", "blue"]}
    expected = call(pipe, generators(), **arguments).images
    handle = parallelize(pipe, window_size=4, tolerance=0.0, max_rows=10)
    assert_same_images(call(pipe, generators(), **arguments).images, expected)
    lengths = [record.length.tolist() for record in handle.stats[0].window_history]
    assert lengths[1:3] == [[3, 4, 3], [3, 3, 4]]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_generator_per_image_and_given_latents(pipeline, eta):
    pipe = pipeline(tiny.stable_diffusion)
    latents = torch.randn(2, 4, 8, 8, generator=generators())
    arguments = {**TEXTS, "latents": latents, "eta": eta, "guidance_scale": 5.0}
    expected = call(pipe, generators(2), **arguments).images
    parallelize(pipe, window_size=4, tolerance=0.0)
    assert_same_images(call(pipe, generators(2), **arguments).images, expected)


def test_without_a_generator_the_global_one_is_drawn_from(pipeline):
    """DiTPipeline's steps take no generator, and step every sample twice."""
    pipe = pipeline(tiny.dit_pipeline, diffusers.DDPMScheduler(clip_sample=False))
    states, images = [], []
    for is_parallel in (False, True):
        if is_parallel:
            parallelize(pipe, window_size=4, tolerance=0.0)
        torch.manual_seed(5)
        images.append(call(pipe, None, class_labels=[3, 207]).images)
        states.append(torch.get_rng_state())
    assert_same_images(images[1], images[0])
    assert torch.equal(states[0], states[1])


def test_default_options_stay_close_and_save_rounds(pipeline):
    pipe = pipeline(tiny.stable_diffusion)
    arguments = {**TEXTS, "num_inference_steps": 20, "eta": 1.0, "output_type": "latent"}
    expected = call(pipe, generators(), **arguments).images
    handle = parallelize(pipe, window_size=20)
    got = call(pipe, generators(), **arguments).images
    assert (got - expected).square().mean().sqrt() < 0.05 * expected.std()
    (stats,) = handle.stats
    assert stats.rounds < 16
    # rows of the model, two for every point
    assert stats.evaluations == 2 * sum(int(r.length.sum()) for r in stats.window_history)
    parallelize(pipe, max_rows=8)
    got = call(pipe, generators(), **arguments).images
    assert (got - expected).square().mean().sqrt() < 0.05 * expected.std()


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


def change_latents_once(pipe, step, timestep, tensors):
    if step == 2:
        tensors["latents"] = tensors["latents"] * 0.7
    return tensors


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


def test_errors_in_the_middle_leave_the_pipeline_usable(pipeline, monkeypatch):
    pipe = pipeline(tiny.stable_diffusion)
    parallelize(pipe, window_size=4, tolerance=0.0)

    def fail(pipe, step, timestep, tensors):
        raise KeyError("from the callback")

    with pytest.raises(KeyError, match="from the callback"):
        call(pipe, generators(), **TEXTS, callback_on_step_end=fail)
    assert not is_occupied(pipe)

    def broken(*arguments, **named):
        raise FloatingPointError("from the model")

    with monkeypatch.context() as patch:
        patch.setattr(pipe.unet.conv_in, "forward", broken)
        with pytest.raises(FloatingPointError, match="from the model"):
            call(pipe, generators(), **TEXTS)
    assert not is_occupied(pipe)
    expected = sequentially(pipe, generators(), **TEXTS)
    assert_same_images(call(pipe, generators(), **TEXTS).images, expected)


def test_a_loop_over_timesteps_is_left_after_an_error(pipeline, monkeypatch):
    pipe = pipeline(tiny.ddpm)
    parallelize(pipe, window_size=4, tolerance=0.0)

    def broken(*arguments, **named):
        raise FloatingPointError("from the model")

    with monkeypatch.context() as patch:
        patch.setattr(pipe.unet.conv_in, "forward", broken)
        with pytest.raises(FloatingPointError, match="from the model"):
            call(pipe, generators(), batch_size=2)
    assert not is_occupied(pipe)
    expected = sequentially(pipe, generators(), batch_size=2)
    assert_same_images(call(pipe, generators(), batch_size=2).images, expected)


def test_restore_undoes_everything(pipeline):
    pipe = pipeline(tiny.stable_diffusion)
    before = dict(vars(pipe)), set(vars(pipe.unet)), set(vars(pipe.scheduler))
    parallelize(pipe)
    parallelize(pipe, tolerance=0.5)
    restore(pipe)
    restore(pipe)
    assert (dict(vars(pipe)), set(vars(pipe.unet)), set(vars(pipe.scheduler))) == before
    calls = []
    hook = pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    call(pipe, generators(), **TEXTS)
    hook.remove()
    assert len(calls) == STEPS


def test_a_parallelized_pipeline_is_saved_as_it_was(pipeline, tmp_path):
    pipe = pipeline(tiny.ddim)
    pipe.save_pretrained(tmp_path / "before")
    parallelize(pipe)
    call(pipe, generators(), batch_size=1)
    pipe.save_pretrained(tmp_path / "after")
    for name in ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"):
        before, after = (json.loads((tmp_path / d / name).read_text()) for d in ("before", "after"))
        assert after == before


def test_the_model_and_the_scheduler_are_their_own_outside_of_the_loop(pipeline):
    """Another pipeline that shares them runs sequentially, and so do direct calls."""
    pipe = pipeline(tiny.ddim)
    handle = parallelize(pipe, window_size=4, tolerance=0.0)
    call(pipe, generators(), batch_size=1)
    assert not is_occupied(pipe)
    other = diffusers.DDIMPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    before = list(handle.stats)
    expected = call(other, generators(), batch_size=2).images
    assert handle.stats == before
    assert_same_images(call(pipe, generators(), batch_size=2).images, expected)


def test_a_scheduler_that_takes_the_place_is_followed(pipeline):
    pipe = pipeline(tiny.stable_diffusion)
    handle = parallelize(pipe, window_size=4, tolerance=0.0)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    expected = sequentially(pipe, generators(), **TEXTS)
    assert_same_images(call(pipe, generators(), **TEXTS).images, expected)
    assert handle.stats


def test_progress_bar_counts_the_steps(pipeline):
    pipe = pipeline(tiny.stable_diffusion)
    other = pipeline(tiny.ddpm)
    for one, arguments in ((pipe, TEXTS), (other, {"batch_size": 1})):
        parallelize(one, window_size=4)
        written = io.StringIO()
        one.set_progress_bar_config(file=written)
        call(one, generators(), **arguments)
        one.set_progress_bar_config(disable=True)
        assert f"{STEPS}/{STEPS}" in written.getvalue()


@pytest.mark.parametrize("name", ["sd-eta", "flux"])
def test_without_the_trajectory_the_images_are_the_same(pipeline, name):
    make, scheduler, arguments = CASES[name]
    pipe = pipeline(make, scheduler)
    expected = call(pipe, generators(), **arguments).images
    parallelize(pipe, window_size=4, tolerance=0.0, keep_trajectory=False)
    assert_same_images(call(pipe, generators(), **arguments).images, expected)
    with pytest.raises(ValueError, match="keep_trajectory=True"):
        call(pipe, generators(), **arguments, callback_on_step_end=change_latents_once)


def test_image_to_image_begins_in_the_middle(pipeline):
    pipe = pipeline(tiny.stable_diffusion)
    pipe = diffusers.StableDiffusionImg2ImgPipeline(
        **pipe.components, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(2, 3, 16, 16, generator=generators())
    arguments = {"prompt": TEXTS["prompt"], "image": image, "strength": 0.7, "eta": 1.0}
    expected = call(pipe, generators(), **arguments).images
    handle = parallelize(pipe, window_size=4, tolerance=0.0)
    assert_same_images(call(pipe, generators(), **arguments).images, expected)
    assert [stats.rounds for stats in handle.stats] == [4]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_precisions(dtype):
    pipe = tiny.seeded(tiny.stable_diffusion).to(dtype)
    arguments = {**TEXTS, "output_type": "latent"}
    expected = call(pipe, generators(), **arguments).images
    handle = parallelize(pipe, window_size=4, tolerance=0.0)
    got = call(pipe, generators(), **arguments).images
    assert got.dtype == expected.dtype == dtype
    # the states of the sequential pipeline are rounded to the model's precision, ours are not
    bound = 1e-9 if dtype is torch.float64 else 0.03
    assert (got - expected).abs().max() <= bound * expected.abs().max()
    assert handle.stats


class Convolution(diffusers.ModelMixin, diffusers.configuration_utils.ConfigMixin):
    """A denoiser that is compiled quickly."""

    @diffusers.configuration_utils.register_to_config
    def __init__(self, sample_size=8, in_channels=3, out_channels=3):
        super().__init__()
        self.conv = torch.nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, sample, timestep, return_dict=True):
        out = self.conv(sample) * torch.sin(timestep.float() + 1).view(-1, 1, 1, 1)
        if not return_dict:
            return (out,)
        return diffusers.models.modeling_outputs.Transformer2DModelOutput(sample=out)


def test_nothing_of_a_call_is_kept(pipeline):
    """Texts and latents may be large, and a pipeline lives long."""
    pipe = pipeline(tiny.stable_diffusion)
    parallelize(pipe, window_size=4)
    embeds = [torch.randn(1, 5, 32, generator=generators()) for _ in range(2)]
    last = []

    def look(pipe, step, timestep, tensors):
        last[:] = [weakref.ref(tensors["latents"])]
        return tensors

    call(
        pipe,
        generators(),
        prompt_embeds=embeds[0],
        negative_prompt_embeds=embeds[1],
        callback_on_step_end=look,
    )
    before = [*map(weakref.ref, embeds), *last]
    embeds.clear()
    gc.collect()
    assert [tensor() for tensor in before] == [None] * 3
    # not isinstance, which looks at properties of things that do not matter here
    tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
    assert [t for t in tensors if t.shape[1:] == (5, 32)] == []


def test_samples_must_be_large_enough_to_tell_rows_apart():
    assert probe((2, 8), 1, torch.device("cpu")).tolist() == [
        [0, 1, 0, 1, 0, 0, 0, 1],
        [0, 0, 1, 1, 0, 0, 0, 1],
    ]
    with pytest.raises(ValueError, match="more than 8 elements"):
        probe((2, 8), 2, torch.device("cpu"))


@pytest.mark.parametrize("how", ["module", "method"])
def test_compiled_models_are_called_compiled(how):
    model = tiny.seeded(Convolution)
    pipe = diffusers.DDIMPipeline(unet=model, scheduler=diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    expected = call(pipe, generators(), batch_size=2).images
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    if how == "module":
        pipe.unet = torch.compile(model, backend=backend)
    else:
        model.compile(backend=backend)
    parallelize(pipe, window_size=2, tolerance=0.0)
    got = call(pipe, generators(), batch_size=2).images
    assert compiled
    assert_same_images(got, expected)


def test_hooks_of_the_module_see_probes_too(pipeline):
    pipe = pipeline(tiny.ddim)
    handle = parallelize(pipe, window_size=4, tolerance=0.0)
    rows = []
    hook = pipe.unet.register_forward_hook(lambda module, inputs, out: rows.append(len(inputs)))
    call(pipe, generators(), batch_size=2)
    hook.remove()
    assert len(rows) == STEPS + handle.stats[0].rounds


def test_hooks_of_accelerate_run_with_the_models_true_calls_alone(pipeline):
    """Offloading brings the model to its device this way."""
    hooks = pytest.importorskip("accelerate.hooks")

    class Count(hooks.ModelHook):
        calls = 0

        def pre_forward(self, module, *arguments, **named):
            self.calls += 1
            return arguments, named

    pipe, count = pipeline(tiny.ddim), Count()
    hooks.add_hook_to_module(pipe.unet, count)
    try:
        hooked = pipe.unet.forward
        handle = parallelize(pipe, window_size=4, tolerance=0.0)
        got = call(pipe, generators(), batch_size=2).images
        assert count.calls == handle.stats[0].rounds
        assert vars(pipe.unet)["forward"] is hooked
    finally:
        hooks.remove_hook_from_module(pipe.unet)
    assert_same_images(got, sequentially(pipe, generators(), batch_size=2))


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"guidance_rescale": 0.7}, "guidance_rescale"),
        ({"guidance_rescale": 0.7, "guidance_scale": 1.5}, "guidance_rescale"),
    ],
)
def test_what_is_not_linear_in_the_models_output_is_refused(pipeline, arguments, match):
    pipe = pipeline(tiny.stable_diffusion)
    parallelize(pipe)
    with pytest.raises(ValueError, match=match):
        call(pipe, generators(), **TEXTS, **arguments)
    assert not is_occupied(pipe)


def test_controlnet_is_refused(pipeline):
    pipe = pipeline(tiny.stable_diffusion)
    controlnet = diffusers.ControlNetModel.from_unet(
        pipe.unet, conditioning_embedding_out_channels=(4, 4), load_weights_from_unet=False
    )
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **pipe.components, controlnet=controlnet, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    parallelize(pipe)
    image = torch.rand(2, 3, 16, 16)
    with pytest.raises(ValueError, match="ControlNet"):
        call(pipe, generators(), prompt=TEXTS["prompt"], image=image)


def test_models_that_are_told_more_than_latents_are_refused(pipeline):
    pipe = pipeline(tiny.stable_diffusion, in_channels=9)
    pipe = diffusers.StableDiffusionInpaintPipeline(
        **pipe.components, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    parallelize(pipe)
    image, mask = torch.rand(2, 3, 16, 16), torch.ones(2, 1, 16, 16)
    with pytest.raises(ValueError, match=r"shape of the latents \(2, 4, 8, 8\)"):
        call(pipe, generators(), **TEXTS, image=image, mask_image=mask)


def test_the_example_runs(capsys):
    path = Path(__file__).parents[1] / "examples" / "diffusers_parallel.py"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        runpy.run_path(str(path))
    rounds, difference = re.findall(r"[\d.]+", capsys.readouterr().out)[::2]
    assert int(rounds) < 30
    assert float(difference) < 0.05
    code = [line for line in path.read_text().splitlines() if line and line[0] not in '#"]})']
    assert len([line for line in code if not line.startswith((" ", "import", "from"))]) <= 10


def test_the_documented_examples_run(capsys):
    page = Path(__file__).parents[1] / "docs" / "integrations.md"
    section = page.read_text(encoding="utf-8").partition("\n## diffusers pipelines\n")[2]
    first, second = re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(first, "integrations.md", "exec"), {})
        names: dict = {}
        exec(compile(second, "integrations.md", "exec"), names)
    assert int(capsys.readouterr().out.partition(" ")[0]) < 20
    assert names["latents"].shape == (2, 4, 8, 8)


def test_what_cannot_be_parallelized_is_refused_at_once(pipeline):
    pipe = pipeline(tiny.ddim)
    with pytest.raises(TypeError, match="diffusers pipeline"):
        parallelize(torch.nn.Identity())
    with pytest.raises(TypeError, match=r"\['windows'\]"):
        parallelize(pipe, windows=3)
    with pytest.raises(ValueError, match="window_size"):
        parallelize(pipe, window_size=0)
    with pytest.raises(ValueError, match="tolerance"):
        parallelize(pipe, tolerance=-1.0)
    pipe.scheduler = diffusers.LCMScheduler()
    with pytest.raises(ValueError, match="LCMScheduler"):
        parallelize(pipe)
    assert "progress_bar" not in vars(pipe)
