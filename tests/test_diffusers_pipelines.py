"""`parallelize(pipe)` gives what the pipeline itself gives, whatever it is asked."""

from __future__ import annotations

import re
import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

import tiny_pipelines as tiny
from parallel_pipelines import (
    CASES,
    FLUX,
    TEXTS,
    assert_same_images,
    call,
    change_latents_once,
    generators,
    is_occupied,
    levels,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

from ctd_engine.integrations.diffusers import parallelize
from ctd_engine.integrations.diffusers._mix import probe

# SDXL's own conversion of a tokenizer's output
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


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


def test_samples_must_be_large_enough_to_tell_rows_apart():
    assert probe((2, 8), 1, torch.device("cpu")).tolist() == [
        [0, 1, 0, 1, 0, 0, 0, 1],
        [0, 0, 1, 1, 0, 0, 0, 1],
    ]
    with pytest.raises(ValueError, match="more than 8 elements"):
        probe((2, 8), 2, torch.device("cpu"))


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
