"""A mixture whose score is known: what a tolerance costs, and what it gives."""

# %% three narrow Gaussians in the plane, and DDIM
import torch

from ctd_engine import ParallelSampler, SequentialSampler, exact, schedules, solvers

table = solvers.ddim(schedules.linear_beta(), num_steps=100, eta=1.0)
points = torch.tensor([[-1.0, -1.0], [0.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
model = exact.MixtureModel(table, points, std=0.05)
options = {"shape": (2,), "solver": table, "dtype": torch.float64}

# %% the answer, one call per step
oracle = SequentialSampler(model, **options).sample(32, seed=0).samples

# %% at tolerance 0 the samples are the same, up to rounding; a looser one saves rounds
print("tolerance   rounds   evaluations   largest difference")
for tolerance in (0.0, 0.01, 0.1):
    sampler = ParallelSampler(model, **options, window_size=100, max_rows=3200, tolerance=tolerance)
    result = sampler.sample(32, seed=0)
    difference = float((result.samples - oracle).abs().max())
    evaluations = result.stats.evaluations / 32
    print(f"{tolerance:9g} {result.stats.rounds:8d} {evaluations:13.0f} {difference:20.1e}")

# %% all three components are there
nearest = torch.cdist(oracle, points).argmin(1)
print("samples per component:", torch.bincount(nearest, minlength=3).tolist())
