"""A parallelized pipeline, its model and its scheduler are themselves before and after a call."""

from __future__ import annotations

import gc
import io
import json
import warnings
import weakref

import pytest
import torch

pytest.importorskip("diffusers")

import tiny_pipelines as tiny
from parallel_pipelines import (
    STEPS,
    TEXTS,
    assert_same_images,
    call,
    generators,
    is_occupied,
    sequentially,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

from ctd_engine.integrations.diffusers import parallelize, restore

# SDXL's own conversion of a tokenizer's output
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


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
