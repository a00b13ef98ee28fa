"""Small models of diffusers with random weights, sampled by their scheduler's loop and by ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ctd_engine import ParallelSampler, SequentialSampler
from ctd_engine.integrations.diffusers import solver_table
from diffusers_parity import difference, make, run_loop

diffusers = pytest.importorskip("diffusers")

BATCH = 2


def unet(**options: Any) -> torch.nn.Module:
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **options,
    )


def adm() -> torch.nn.Module:
    """As many channels again for a learned variance."""
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=6,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
    )


def dit(out_channels: int) -> torch.nn.Module:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=out_channels,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        norm_num_groups=4,
        num_embeds_ada_norm=1000,
    )


def conditional_unet() -> torch.nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def mmdit() -> torch.nn.Module:
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=8,
    )


class Called(torch.nn.Module):
    """A model of diffusers as `model(x, t)`, the rest of its arguments shared by all rows."""

    def __init__(self, model: torch.nn.Module, **shared: Tensor) -> None:
        super().__init__()
        self.model = model
        self.shared = shared

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        rows = {k: v.expand(len(x), *v.shape[1:]) for k, v in self.shared.items()}
        rows = {k: v.to(x.dtype) if v.is_floating_point() else v for k, v in rows.items()}
        return self.model(x, timestep=t, **rows, return_dict=False)[0]


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


CASES: dict[str, tuple[Any, int, str, dict[str, Any]]] = {
    "UNet2DModel, DDPM": (unet, 3, "DDPMScheduler", {}),
    "UNet2DModel, DDIM, v": (
        lambda: unet(),
        3,
        "DDIMScheduler",
        dict(prediction_type="v_prediction", timestep_spacing="trailing"),
    ),
    "ADM, learned range": (adm, 3, "DDPMScheduler", dict(variance_type="learned_range")),
    "DiT, DDIM": (
        lambda: Called(dit(4), class_labels=torch.tensor([7])),
        4,
        "DDIMScheduler",
        dict(clip_sample=False),
    ),
    "DiT, learned range": (
        lambda: Called(dit(8), class_labels=torch.tensor([7])),
        4,
        "DDPMScheduler",
        dict(variance_type="learned_range", clip_sample=False),
    ),
    "UNet2DConditionModel, Euler": (
        lambda: Called(conditional_unet(), encoder_hidden_states=seeded(1, 3, 8)),
        4,
        "EulerDiscreteScheduler",
        {},
    ),
    "UNet2DConditionModel, DPM-Solver++": (
        lambda: Called(conditional_unet(), encoder_hidden_states=seeded(1, 3, 8)),
        4,
        "DPMSolverMultistepScheduler",
        dict(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True),
    ),
    "UNet2DConditionModel, UniPC": (
        lambda: Called(conditional_unet(), encoder_hidden_states=seeded(1, 3, 8)),
        4,
        "UniPCMultistepScheduler",
        {},
    ),
    "SD3Transformer2DModel, flow": (
        lambda: Called(
            mmdit(), encoder_hidden_states=seeded(1, 3, 8), pooled_projections=seeded(1, 8)
        ),
        4,
        "FlowMatchEulerDiscreteScheduler",
        dict(shift=3.0),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_model(name: str) -> None:
    make_model, channels, scheduler_name, config = CASES[name]
    torch.manual_seed(0)
    built = make_model()
    model = (built if isinstance(built, Called) else Called(built)).eval()
    shape, steps = (channels, 8, 8), dict(num_inference_steps=5)
    for dtype, most in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
        model = model.to(dtype)
        scheduler = make(scheduler_name, dtype, **config)
        table = solver_table(scheduler, 5)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(BATCH, *shape, generator=generator, dtype=dtype) * table.initial_scale
        z = torch.randn(table.num_nodes, BATCH, *shape, generator=generator, dtype=dtype)
        with torch.inference_mode():
            theirs = run_loop(scheduler, model, x, z, steps)
        for sampler in (
            SequentialSampler(model, shape=shape, solver=table, dtype=dtype),
            ParallelSampler(
                model, shape=shape, solver=table, dtype=dtype, window_size=3, tolerance=0.0
            ),
        ):
            ours = sampler.sample(BATCH, x_init=x, noise=z).samples
            assert difference(ours, theirs) <= most
