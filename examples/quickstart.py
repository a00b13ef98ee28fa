"""Digits from the model in the package, in parallel and sequentially: the same ones."""

# %% the committed model: 359 thousand parameters, 8x8 handwritten digits
import torch

from ctd_engine import ParallelSampler, SequentialSampler
from ctd_engine.demo import demo_checkpoint

digits = demo_checkpoint()
options = {
    "shape": digits.shape,
    "schedule": digits.schedule,
    "prediction": digits.prediction,
    "num_steps": 200,
    "clip_x0": 1.0,
}
cond = {"label": torch.arange(4)}

# %% a window of 32 points is corrected at once
sampler = ParallelSampler(digits.model, **options, window_size=32, tolerance=0.1)
result = sampler.sample(4, seed=0, cond=cond)
stats = result.stats
print(f"{stats.rounds} rounds, {stats.evaluations / 4:.0f} evaluations per sample")

# %% one call per step, with the same noise
oracle = SequentialSampler(digits.model, **options).sample(4, seed=0, cond=cond)
difference = (result.samples - oracle.samples).square().mean((1, 2, 3)).sqrt()
print(f"{oracle.stats.rounds} calls, root mean squared difference {float(difference.max()):.4f}")

# %% a sample again, alone, by its seed
again = sampler.sample(seeds=[result.seeds[2]], cond={"label": torch.tensor([2])})
print(f"sample 2 again, up to {float((again.samples[0] - result.samples[2]).abs().max()):.4f}")
