"""Pipelines of diffusers with tiny random weights, made offline."""

from __future__ import annotations

import warnings

import torch

with warnings.catch_warnings():
    # deprecations inside the packages themselves
    warnings.simplefilter("ignore")
    import diffusers
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

MAX_TOKENS = 8
WORDS = ["a", "photo", "of", "cat", "dog", "red", "blue", "house", "on", "the", "moon"]


def tokenizer():
    """Whole words, begin and end marks: what a pipeline needs of CLIP's or T5's."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    marks = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, model_max_length=MAX_TOKENS, **marks
    )


def clip(*, with_projection=False, width=32):
    """A text encoder of CLIP."""
    config = transformers.CLIPTextConfig(
        vocab_size=4 + len(WORDS),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    kind = (
        transformers.CLIPTextModelWithProjection if with_projection else transformers.CLIPTextModel
    )
    return kind(config).eval()


def t5():
    """A text encoder of T5."""
    config = transformers.T5Config(
        vocab_size=4 + len(WORDS), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4
    )
    return transformers.T5EncoderModel(config).eval()


def vae(latent_channels=4, *, factor=2, **options):
    """An autoencoder; images are `factor` times as large as latents, 1 or 2."""
    blocks = factor.bit_length()
    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=latent_channels,
        norm_num_groups=4,
        **options,
    ).eval()


def unet(**options):
    """A denoiser without conditioning, of 8 x 8 images."""
    options = {
        "sample_size": 8,
        "block_out_channels": (16, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        **options,
    }
    return diffusers.UNet2DModel(**options).eval()


def cross_unet(**options):
    """A denoiser of 8 x 8 latents with cross-attention to a text."""
    options = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        **options,
    }
    return diffusers.UNet2DConditionModel(**options).eval()


def dit(**options):
    """DiT of 4 x 4 latents, with the half of its output that is about the variance."""
    options = {
        "sample_size": 4,
        "num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "patch_size": 2,
        "norm_type": "ada_norm_zero",
        "num_embeds_ada_norm": 1000,
        **options,
    }
    return diffusers.DiTTransformer2DModel(**options).eval()


def sd3_transformer():
    """Stable Diffusion 3's denoiser of 4 x 4 latents."""
    return diffusers.SD3Transformer2DModel(
        sample_size=4,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=8,
    ).eval()


def flux_transformer(**options):
    """Flux's denoiser of packed latents with 16 channels."""
    options = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
        **options,
    }
    return diffusers.FluxTransformer2DModel(**options).eval()


def ddpm(scheduler=None):
    """DDPMPipeline."""
    return _quiet(diffusers.DDPMPipeline, unet=unet(), scheduler=scheduler or _ddpm())


def ddim(scheduler=None):
    """DDIMPipeline."""
    scheduler = scheduler or diffusers.DDIMScheduler()
    return _quiet(diffusers.DDIMPipeline, unet=unet(), scheduler=scheduler)


def stable_diffusion(scheduler=None, **options):
    """StableDiffusionPipeline."""
    return _quiet(
        options.pop("kind", diffusers.StableDiffusionPipeline),
        vae=vae(),
        text_encoder=clip(),
        tokenizer=tokenizer(),
        unet=cross_unet(**options),
        scheduler=scheduler or scaled(diffusers.DDIMScheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(scheduler=None):
    """StableDiffusionXLPipeline."""
    return _quiet(
        diffusers.StableDiffusionXLPipeline,
        vae=vae(),
        text_encoder=clip(with_projection=True),
        text_encoder_2=clip(with_projection=True),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=cross_unet(
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8,
        ),
        scheduler=scheduler or scaled(diffusers.EulerDiscreteScheduler),
        add_watermarker=False,
    )


def dit_pipeline(scheduler=None):
    """DiTPipeline."""
    return _quiet(
        diffusers.DiTPipeline,
        transformer=dit(),
        vae=vae(),
        scheduler=scheduler or diffusers.DDIMScheduler(),
    )


def stable_diffusion_3(scheduler=None):
    """StableDiffusion3Pipeline, without its T5."""
    return _quiet(
        diffusers.StableDiffusion3Pipeline,
        transformer=sd3_transformer(),
        scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.1),
        text_encoder=clip(with_projection=True),
        tokenizer=tokenizer(),
        text_encoder_2=clip(with_projection=True),
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def flux(scheduler=None, **options):
    """FluxPipeline."""
    return _quiet(
        diffusers.FluxPipeline,
        transformer=flux_transformer(**options),
        scheduler=scheduler
        or diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae(shift_factor=0.1, factor=1),
        text_encoder=clip(),
        tokenizer=tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(),
    )


def scaled(kind, **options):
    """A scheduler with Stable Diffusion's betas."""
    options = {"beta_schedule": "scaled_linear", "steps_offset": 1, **options}
    options = {"beta_start": 0.00085, "beta_end": 0.012, **options}
    if "clip_sample" in kind._get_init_keys(kind):
        options.setdefault("clip_sample", False)
    return kind(**options)


def _ddpm():
    return diffusers.DDPMScheduler()


def _quiet(kind, **parts):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(make, *arguments, seed=0, **options):
    """`make(...)` with weights from a seed, leaving the global generator alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(*arguments, **options)
