"""Small exact problems that the sampler's tests share."""

from __future__ import annotations

import torch

from ctd_engine import schedules, solvers
from ctd_engine.exact import MixtureModel

SHAPE = (3, 2)

# every solver on a schedule and with a prediction that fit it; all predictions occur
PROBLEMS = [
    ("ddpm", "linear_beta", "epsilon", {}),
    ("ddpm", "cosine", "v", {"variance": "fixed_large"}),
    ("ddim", "linear_beta", "x0", {"eta": 0.0}),
    ("ddim", "scaled_linear_beta", "epsilon", {"eta": 0.7}),
    ("ddim", "linear_beta", "edm", {"eta": 0.0}),
    ("euler", "karras", "edm", {}),
    ("euler", "linear_beta", "v", {}),
    ("euler_ancestral", "karras", "epsilon", {}),
    ("heun", "karras", "edm", {}),
    ("heun", "linear_beta", "epsilon", {}),
    ("dpmpp_2m", "linear_beta", "epsilon", {}),
    ("dpmpp_2m", "karras", "x0", {}),
    ("dpmpp_sde", "linear_beta", "v", {}),
    ("dpmpp_sde", "karras", "edm", {}),
    ("flow_euler", "flow", "flow", {}),
    ("ddpm", "flow", "flow", {}),
]
IDS = ["-".join((s, n, p, *map(str, o.values()))) for s, n, p, o in PROBLEMS]


def table_of(problem, num_steps, **more):
    solver, schedule, prediction, options = problem
    return solvers.build(
        solver, schedules.get(schedule)(), num_steps, prediction=prediction, **options, **more
    )


def mixture(table, *, std=0.3):
    """Four well separated components in six dimensions."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    return MixtureModel(table, means, std)
