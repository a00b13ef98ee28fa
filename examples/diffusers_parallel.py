"""A diffusers pipeline, sequential and parallel: the same images from fewer rounds of its model."""

# %% any pipeline of the table in docs/integrations.md; this one has random weights, needs no file
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from ctd_engine.integrations.diffusers import parallelize

blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
unet = UNet2DModel(sample_size=8, block_out_channels=(32, 32), **blocks).eval()
pipe = DDPMPipeline(unet, DDPMScheduler())
pipe.set_progress_bar_config(disable=True)

# %% its own sequential call
call = {"num_inference_steps": 50, "output_type": "np"}
expected = pipe(generator=torch.manual_seed(0), **call).images

# %% the same call in parallel
report = parallelize(pipe, window_size=25, tolerance=0.05)
images = pipe(generator=torch.manual_seed(0), **call).images
difference = abs(images - expected).max()
print(f"{report.stats[0].rounds} rounds instead of 50, largest difference {difference:.3f}")
