"""Parts of a parallelized pipeline that others use too: threads, callbacks, other pipelines."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

import tiny_pipelines as tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

from ctd_engine.integrations.diffusers import parallelize, pipelines, restore, sampler

STEPS = 4
CALL = {
    "prompt": "a red cat",
    "height": 16,
    "width": 16,
    "num_inference_steps": STEPS,
    "output_type": "np",
}


@pytest.fixture
def pipe():
    made = tiny.seeded(tiny.stable_diffusion)
    yield made
    restore(made)


def images(pipe, seed=0, **arguments):
    generator = torch.Generator().manual_seed(seed)
    return pipe(**CALL, generator=generator, **arguments).images


def sibling_of(pipe):
    """A pipeline with the same model and a scheduler of its own."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    made = type(pipe)(**{**pipe.components, "scheduler": scheduler}, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def in_another_thread(work):
    """What `work` returns or raises there."""
    outcome = []

    def run():
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(timeout=60.0)
    return outcome[0]


def at_step(step, work, results):
    """A callback that works at one step."""

    def callback(pipe, index, timestep, latents):
        if index == step:
            results.append(work())
        return {}

    return callback


def test_a_pipeline_of_another_thread_keeps_the_model(pipe):
    other = sibling_of(pipe)
    expected, expected_other = images(pipe), images(other, seed=1)
    parallelize(pipe, window_size=STEPS, tolerance=0.0)
    seen = []
    callback = at_step(1, lambda: in_another_thread(lambda: images(other, seed=1)), seen)
    np.testing.assert_allclose(images(pipe, callback_on_step_end=callback), expected, atol=1e-3)
    np.testing.assert_array_equal(seen[0], expected_other)


def test_two_parallel_pipelines_of_one_model_take_turns(pipe):
    other = sibling_of(pipe)
    expected = images(pipe)
    for one in (pipe, other):
        parallelize(one, window_size=STEPS, tolerance=0.0)
    seen = []
    callback = at_step(1, lambda: in_another_thread(lambda: images(other, seed=1)), seen)
    np.testing.assert_allclose(images(pipe, callback_on_step_end=callback), expected, atol=1e-3)
    assert isinstance(seen[0], RuntimeError)
    assert "is in a parallel run of thread 'MainThread'" in str(seen[0])
    # one after the other both work
    np.testing.assert_allclose(images(other), expected, atol=1e-3)
    restore(other)
    restore(pipe)
    assert not {"forward", "_compiled_call_impl"} & set(vars(pipe.unet))


def test_what_an_error_left_behind_is_taken_over(pipe):
    other = sibling_of(pipe)
    expected = images(other)
    for one in (pipe, other):
        parallelize(one, window_size=STEPS, tolerance=0.0)

    def fail():
        raise KeyError("callback")

    with pytest.raises(KeyError) as kept:
        images(pipe, callback_on_step_end=at_step(1, fail, []))
    # the traceback keeps the loop's frames, and so the loop, alive
    assert kept.traceback
    np.testing.assert_allclose(images(other), expected, atol=1e-3)


def test_a_callback_that_calls_the_model(pipe):
    inputs = torch.ones(1, 4, 8, 8), 10, torch.ones(1, 8, pipe.unet.config.cross_attention_dim)

    def ask():
        return pipe.unet(*inputs, return_dict=False)[0].detach()

    expected = ask()
    parallelize(pipe, window_size=STEPS, tolerance=0.0)
    with pytest.raises(RuntimeError, match="called by something other than its step"):
        images(pipe, callback_on_step_end=at_step(1, ask, []))
    seen = []
    images(pipe, callback_on_step_end=at_step(STEPS - 1, ask, seen))
    torch.testing.assert_close(seen[0], expected)


def test_changes_need_the_trajectory_of_a_multistep_solver_too(pipe):
    pipe.scheduler = tiny.scaled(diffusers.DPMSolverMultistepScheduler)
    parallelize(pipe, window_size=STEPS, tolerance=0.0, keep_trajectory=False)

    def change(pipe, index, timestep, given):
        return {"latents": given["latents"] + 1.0} if index == 2 else {}

    with pytest.raises(ValueError, match="keep_trajectory=True"):
        images(pipe, callback_on_step_end=change)


def test_restore_gives_a_progress_bar_of_ones_own_back(pipe):
    own = pipe.progress_bar
    pipe.progress_bar = own
    parallelize(pipe)
    parallelize(pipe, tolerance=0.2)
    restore(pipe)
    assert vars(pipe)["progress_bar"] is own


def test_options_are_tried_on_the_pipelines_device(pipe, monkeypatch):
    tried = {}
    monkeypatch.setattr(
        type(pipe), "_execution_device", property(lambda self: torch.device("cuda", 1))
    )
    monkeypatch.setattr(pipelines, "ParallelSampler", lambda *_, **named: tried.update(named))
    parallelize(pipe, scheduler_backend="cuda")
    assert tried["device"] == torch.device("cuda", 1)
    assert tried["scheduler_backend"] == "cuda"
    with pytest.raises(TypeError, match="takes no"):
        parallelize(pipe, max_rounds=3)


# diffusers' own shift divides by it
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_a_sigma_of_zero_before_the_last_is_refused():
    pipe = tiny.seeded(tiny.flux)
    parallelize(pipe, window_size=3)
    with pytest.raises(ValueError, match="sigmas must be positive"):
        pipe(
            prompt="the moon",
            height=8,
            width=8,
            max_sequence_length=8,
            sigmas=[1.0, 0.5, 0.0],
            output_type="np",
        )
    restore(pipe)


def test_models_in_training_mode_are_refused():
    with pytest.raises(ValueError, match="evaluation mode"):
        sampler(tiny.unet().train(), diffusers.DDIMScheduler(), 4)


def test_a_model_that_looks_its_timestep_up():
    model = tiny.seeded(tiny.unet, time_embedding_type="learned", num_train_timesteps=1000).eval()
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    made = sampler(model, scheduler, 4, window_size=4, tolerance=0.0)
    start = torch.randn(1, *made.shape, generator=torch.Generator().manual_seed(0))
    got = made.sample(1, x_init=start).samples
    scheduler.set_timesteps(4)
    x = start
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-4)
