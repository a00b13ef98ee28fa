"""`sampler(model, scheduler, ...)` samples what a loop over the scheduler's steps does."""

from __future__ import annotations

import warnings
from functools import cache

import pytest
import torch

pytest.importorskip("diffusers")

import tiny_pipelines as tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

from ctd_engine import ParallelSampler
from ctd_engine.integrations.diffusers import sampler

STEPS, B = 6, 3


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@cache
def model_of(make, **options):
    model = tiny.seeded(make, **options).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    return model


def scales(scheduler):
    return hasattr(type(scheduler), "scale_model_input")


def loop(ask, scheduler, x, **set_options):
    """The sequential sampler of any tutorial; `ask(x, t)` is the model with guidance."""
    if not set_options.keys() & {"sigmas"}:
        set_options["num_inference_steps"] = STEPS
    scheduler.set_timesteps(**set_options)
    with torch.no_grad():
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t) if scales(scheduler) else x
            x = scheduler.step(ask(scaled, t), t, x).prev_sample
    return x


def close(got, expected):
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (expected[0] - expected[1]).abs().max() > 0.1 * expected.abs().max()


def test_a_model_without_conditioning():
    model, scheduler = model_of(tiny.unet), diffusers.DDIMScheduler()
    made = sampler(model, scheduler, STEPS, tolerance=0.0, window_size=4)
    assert isinstance(made, ParallelSampler)
    assert made.shape == (3, 8, 8)
    x = randn(B, 3, 8, 8)
    close(made.sample(B, x_init=x).samples, loop(lambda x, t: model(x, t).sample, scheduler, x))
    assert made.sample(seed=0).samples.shape == (1, 3, 8, 8)


def test_class_labels():
    model, scheduler = model_of(tiny.unet, num_class_embeds=5), diffusers.DDIMScheduler()
    labels, x = torch.tensor([4, 0, 2]), randn(1, 3, 8, 8).repeat(B, 1, 1, 1)
    made = sampler(model, scheduler, STEPS, class_labels=labels, tolerance=0.0, window_size=4)
    expected = loop(lambda x, t: model(x, t, class_labels=labels).sample, scheduler, x)
    close(made.sample(x_init=x).samples, expected)
    # a call's own conditioning takes the place of the sampler's
    got = made.sample(B, x_init=x, cond={"class_labels": labels.flip(0)}).samples
    torch.testing.assert_close(got, expected.flip(0), rtol=0.0, atol=1e-5)


def test_text_and_sizes_with_guidance():
    """SDXL's denoiser: nested conditioning, one negative row for all samples, Euler's scales."""
    model = model_of(
        tiny.cross_unet,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    scheduler = tiny.scaled(diffusers.EulerDiscreteScheduler)
    texts, none = 3 * randn(B, 5, 32), 3 * randn(1, 5, 32, seed=1)
    added = {"text_embeds": randn(B, 32, seed=2), "time_ids": torch.arange(6.0).repeat(B, 1)}
    negative = {"text_embeds": randn(1, 32, seed=3)}
    made = sampler(
        model,
        scheduler,
        STEPS,
        encoder_hidden_states=texts,
        added_cond_kwargs=added,
        negative={"encoder_hidden_states": none, "added_cond_kwargs": negative},
        guidance_scale=3.0,
        tolerance=0.0,
        window_size=4,
    )

    def ask(x, t):
        cond = model(x, t, texts, added_cond_kwargs=added).sample
        nothing = {"text_embeds": negative["text_embeds"].expand(B, -1)}
        nothing["time_ids"] = added["time_ids"]
        null = model(x, t, none.expand(B, -1, -1), added_cond_kwargs=nothing).sample
        return null + 3.0 * (cond - null)

    assert made.table.initial_scale == pytest.approx(float(scheduler.init_noise_sigma))
    scheduler.set_timesteps(STEPS)
    x = scheduler.init_noise_sigma * randn(B, 4, 8, 8)
    result = made.sample(x_init=x)
    close(result.samples, loop(ask, scheduler, x))
    assert result.stats.evaluations == 2 * sum(
        int(record.length.sum()) for record in result.stats.window_history
    )
    # without guidance for one call
    got = made.sample(x_init=x, guidance_scale=1.0).samples
    plain = loop(lambda x, t: model(x, t, texts, added_cond_kwargs=added).sample, scheduler, x)
    close(got, plain)


def test_dit_without_its_variance():
    model, scheduler = model_of(tiny.dit), diffusers.DDIMScheduler()
    labels = torch.tensor([3, 207, 999])
    made = sampler(
        model,
        scheduler,
        STEPS,
        class_labels=labels,
        negative={"class_labels": torch.tensor([1000])},
        guidance_scale=4.0,
        tolerance=0.0,
        window_size=4,
    )

    def ask(x, t):
        times = t.expand(B)
        cond = model(x, times, class_labels=labels).sample[:, :4]
        null = model(x, times, class_labels=torch.full((B,), 1000)).sample[:, :4]
        return null + 4.0 * (cond - null)

    x = randn(B, 4, 4, 4)
    close(made.sample(x_init=x).samples, loop(ask, scheduler, x))


def test_stable_diffusion_3():
    model = model_of(tiny.sd3_transformer)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    texts, pooled = 3 * randn(B, 5, 32), randn(B, 64)
    made = sampler(
        model,
        scheduler,
        STEPS,
        encoder_hidden_states=texts,
        pooled_projections=pooled,
        tolerance=0.0,
        window_size=4,
    )

    def ask(x, t):
        return model(x, texts, pooled, t.expand(B)).sample

    x = randn(B, 4, 4, 4)
    close(made.sample(x_init=x).samples, loop(ask, scheduler, x))


def test_flux():
    model = model_of(tiny.flux_transformer, guidance_embeds=True)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    # as many positions as samples: they are shared all the same
    texts, pooled = 3 * randn(B, 3, 32), randn(B, 32)
    txt_ids, img_ids = torch.zeros(3, 3), torch.cartesian_prod(*[torch.arange(2.0)] * 3)[:4]
    sigmas = [1.0 - i / STEPS for i in range(STEPS)]
    made = sampler(
        model,
        scheduler,
        sigmas=sigmas,
        mu=0.7,
        encoder_hidden_states=texts,
        pooled_projections=pooled,
        guidance=torch.tensor([3.5]),
        img_ids=img_ids,
        txt_ids=txt_ids,
        tolerance=0.0,
        window_size=4,
    )
    assert made.shape == (4, 16)

    def ask(x, t):
        ids = {"img_ids": img_ids, "txt_ids": txt_ids}
        time, guidance = t.expand(B) / 1000, torch.full((B,), 3.5)
        return model(x, texts, pooled, time, guidance=guidance, **ids).sample

    x = randn(B, 4, 16)
    close(made.sample(x_init=x).samples, loop(ask, scheduler, x, sigmas=sigmas, mu=0.7))


def test_noise_of_the_sampler_and_a_learned_variance():
    """Stochastic steps with the table's own noise, given to the scheduler's steps too."""
    model = model_of(tiny.unet, out_channels=6)
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    made = sampler(model, scheduler, STEPS, tolerance=0.0, window_size=4)
    x, noise = randn(B, 3, 8, 8), randn(STEPS, B, 3, 8, 8, seed=1)
    got = made.sample(B, x_init=x, noise=noise).samples
    scheduler.set_timesteps(STEPS)
    draws = iter(noise)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(draws)
        )
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t).sample, t, x).prev_sample
    close(got, x)


def test_a_row_of_conditioning_serves_any_number_of_samples():
    model, scheduler = model_of(tiny.cross_unet), diffusers.DDIMScheduler()
    text = 3 * randn(1, 5, 32)
    made = sampler(
        model, scheduler, STEPS, encoder_hidden_states=text, window_size=4, tolerance=0.0
    )
    assert made.sample(seed=0).samples.shape == (1, 4, 8, 8)
    many = made.sample(3, seeds=[5, 6, 7], keep_trajectory=True)
    assert many.trajectory.shape == (3, STEPS + 1, 4, 8, 8)
    # seeds decide, whoever else is there
    alone = made.sample(seeds=[6]).samples
    torch.testing.assert_close(many.samples[1], alone[0], rtol=0.0, atol=1e-7)
    assert "window" in str(made.plan(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_states_and_inputs_follow_the_models_precision(dtype):
    model = tiny.seeded(tiny.unet).to(dtype)
    made = sampler(model, diffusers.DDIMScheduler(), 3, window_size=3)
    assert made.model_dtype is dtype
    assert made.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert torch.isfinite(made.sample(seed=0).samples).all()


def test_wrong_arguments_are_named():
    unet, scheduler = model_of(tiny.unet), diffusers.DDIMScheduler()
    with pytest.raises(TypeError, match=r"UNet2DModel takes no \['encoder_hidden_states'\]"):
        sampler(unet, scheduler, STEPS, encoder_hidden_states=randn(1, 2, 3))
    with pytest.raises(TypeError, match="got AutoencoderKL"):
        sampler(tiny.vae(), scheduler, STEPS)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got function"):
        sampler(randn, scheduler, STEPS)
    with pytest.raises(ValueError, match="guidance_scale needs negative"):
        sampler(unet, scheduler, STEPS, guidance_scale=2.0)
    with pytest.raises(ValueError, match="LCMScheduler"):
        sampler(unet, diffusers.LCMScheduler(), STEPS)
    with pytest.raises(ValueError, match="shape is needed"):
        sampler(model_of(tiny.unet, sample_size=None), scheduler, STEPS)
    labelled = model_of(tiny.unet, num_class_embeds=5)
    made = sampler(labelled, scheduler, STEPS, class_labels=torch.tensor([1, 2]), window_size=2)
    with pytest.raises(ValueError, match="one row per sample"):
        made.sample(3)
