"""Whole calls of `sample`: sequential, parallel, and every method, on the committed digits model.

pytest benchmarks/bench_samplers.py --benchmark-only

They run one after another: compare them on a machine with nothing else to do. Rounds and
evaluations, which do not vary, stand beside the times in the JSON.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from ctd_engine import ParallelSampler, SequentialSampler
from ctd_engine._coefficients import METHODS
from ctd_engine.demo import demo_checkpoint

NUM_SAMPLES, NUM_STEPS, WINDOW_SIZE = 2, 250, 16


@cache
def digits():
    return demo_checkpoint()


def sampler_of(method, num_steps=NUM_STEPS):
    """The sampler of a method, of all of them the plain one for "sequential"."""
    options = {
        "shape": digits().shape,
        "schedule": digits().schedule,
        "prediction": digits().prediction,
        "num_steps": num_steps,
        "clip_x0": 1.0,
    }
    if method == "sequential":
        return SequentialSampler(digits().model, **options)
    return ParallelSampler(digits().model, **options, window_size=WINDOW_SIZE, method=method)


@pytest.mark.parametrize("method", ["sequential", *METHODS])
def test_sampler(benchmark, method):
    sampler = sampler_of(method)
    cond = {"label": torch.arange(NUM_SAMPLES)}
    result = benchmark.pedantic(
        lambda: sampler.sample(NUM_SAMPLES, seed=0, cond=cond), rounds=5, warmup_rounds=1
    )
    assert result.all_converged
    benchmark.extra_info.update(
        rounds=result.stats.rounds, evaluations=result.stats.evaluations / NUM_SAMPLES
    )
