"""Windows of a fixed most that follow each sample's own advance."""

from __future__ import annotations

import pytest
import torch

from ctd_engine import ParallelSampler, SequentialSampler
from small_problems import SHAPE, mixture, table_of

TABLE = table_of(("ddpm", "linear_beta", "epsilon", {}), 200)


def sampled(**options):
    options = {"window_size": 60, "tolerance": 0.1, "max_rows": 180, **options}
    sampler = ParallelSampler(
        mixture(TABLE), shape=SHAPE, solver=TABLE, dtype=torch.float64, **options
    )
    return sampler.sample(3, seed=5)


@pytest.mark.parametrize("ratio", [1.0, 1.3, 4, 256.0])
def test_at_tolerance_0_the_samples_are_the_sequential_ones(ratio):
    oracle = SequentialSampler(mixture(TABLE), shape=SHAPE, solver=TABLE, dtype=torch.float64)
    want = oracle.sample(3, seed=5).samples
    result = sampled(adaptive_window=ratio, tolerance=0.0)
    assert (result.samples - want).abs().max() <= 1e-9
    assert result.stats.rounds <= TABLE.num_nodes


@pytest.mark.parametrize("method", ["picard", "secant"])
def test_evaluations_fall_with_the_ratio(method):
    whole = sampled(method=method).stats
    stats = [sampled(method=method, adaptive_window=ratio).stats for ratio in (256, 2.0, 1.0)]
    assert stats[0].evaluations == whole.evaluations
    assert stats[0].rounds == whole.rounds
    assert stats[2].evaluations < stats[1].evaluations <= whole.evaluations
    assert stats[2].rounds > whole.rounds
    for one in stats:
        assert max(int(record.length.max()) for record in one.window_history) <= 60


def test_a_window_is_the_ratio_times_the_smoothed_advance():
    """The first whole window, at its most, stands for an advance of 50 / 1.25; 3 : 1 from there."""
    history = sampled(adaptive_window=1.25, window_size=50).stats.window_history
    starts, lengths = (
        [int(v) for v in column]
        for column in zip(
            *((record.start[0], record.length[0]) for record in history[:8]), strict=True
        )
    )
    reach = 256 * 40
    for i in range(1, 7):
        assert lengths[i] == min(50, 200 - starts[i], -(-5 * reach // 1024))
        moved = starts[i + 1] - starts[i]
        reach = (3 * reach + 256 * (2 * moved if moved == lengths[i] else moved)) // 4
    assert len(set(lengths[1:7])) >= 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adaptive_window": 0.5}, "adaptive_window must be >= 1, got 0.5"),
        ({"adaptive_window": 257}, "adaptive_window must be <= 256, got 257"),
        ({"adaptive_window": 2.0, "window_size": "auto"}, "adaptive_window needs a fixed window_"),
        ({"adaptive_window": 2.0, "lockstep": True}, "adaptive_window needs a fixed window_size"),
    ],
    ids=str,
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        sampled(**options)
