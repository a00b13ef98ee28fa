"""The trajectory of a digit as the start for a similar one: fewer rounds."""

# %% the committed model, the whole trajectory as one window
import torch

from ctd_engine import ParallelSampler
from ctd_engine.demo import demo_checkpoint

digits = demo_checkpoint()
sampler = ParallelSampler(
    digits.model,
    shape=digits.shape,
    schedule=digits.schedule,
    prediction=digits.prediction,
    solver="ddim",
    num_steps=50,
    window_size=50,
    clip_x0=1.0,
    null_cond={"label": torch.tensor([10])},
)
cond = {"label": torch.arange(5)}

# %% sample, and keep all points
first = sampler.sample(5, seed=0, cond=cond, guidance_scale=2.0, keep_trajectory=True)

# %% the same noise with a little more guidance: cold, and from the trajectory that is there
more = {"cond": cond, "guidance_scale": 2.2, "seed": 0}
cold = sampler.sample(5, **more)
warm = sampler.sample(5, **more, x_trajectory=first.trajectory)
difference = (warm.samples - cold.samples).square().mean((1, 2, 3)).sqrt()
print(f"cold: {cold.stats.rounds} rounds, warm: {warm.stats.rounds} rounds")
print(f"root mean squared difference: {float(difference.max()):.4f}")
