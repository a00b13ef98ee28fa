"""`keep_trajectory`: the points of a run, the same from every sampler and loop."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from ctd_engine import ParallelSampler, SequentialSampler, _ext
from ctd_engine._resident_run import KeptRounds, run_resident
from ctd_engine.ops._dispatch import triton_unavailable_reason
from small_problems import IDS, PROBLEMS, SHAPE, mixture, table_of

NUM_STEPS = 8


def samplers(problem, **options):
    table = table_of(problem, NUM_STEPS)
    model, shared = mixture(table), {"shape": SHAPE, "solver": table, "dtype": torch.float64}
    options = {"window_size": 3, "tolerance": 0.0, **options}
    return ParallelSampler(model, **shared, **options), SequentialSampler(model, **shared)


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_all_points_are_the_sequential_ones(problem):
    parallel, oracle = samplers(problem, max_rows=7)
    got = parallel.sample(4, seed=1, keep_trajectory=True)
    expected = oracle.sample(4, seed=1, keep_trajectory=True)
    assert got.trajectory.shape == (4, parallel.table.num_nodes + 1, *SHAPE)
    torch.testing.assert_close(got.trajectory, expected.trajectory, rtol=0.0, atol=1e-9)
    torch.testing.assert_close(got.trajectory[:, -1], got.samples, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("tolerance", [0.05, 1.0])
def test_points_are_those_that_were_accepted(tolerance):
    """What a window began with in any round is the point that the record holds."""
    parallel, _ = samplers(PROBLEMS[0], tolerance=tolerance, window_size=5)
    asked = []

    def model(x, t):
        asked.append((x.clone(), t.clone()))
        return parallel.model(x, t)

    spying = ParallelSampler(
        model,
        shape=SHAPE,
        solver=parallel.table,
        window_size=5,
        tolerance=tolerance,
        dtype=torch.float64,
    )
    result = spying.sample(1, seed=3, keep_trajectory=True)
    starts = [int(record.start[0]) for record in result.stats.window_history]
    assert len(set(starts)) < parallel.table.num_nodes, "every point was a start: nothing skipped"
    for start, (x, _) in zip(starts, asked, strict=True):
        scale = parallel.table.input_scale[start]
        torch.testing.assert_close(x[0], scale * result.trajectory[0, start], rtol=0, atol=0)


def test_nothing_is_kept_unless_asked():
    parallel, oracle = samplers(PROBLEMS[0])
    assert parallel.sample(1, seed=0).trajectory is None
    assert oracle.sample(1, seed=0).trajectory is None


def test_points_beyond_a_cancelled_run_are_nan():
    parallel, oracle = samplers(PROBLEMS[0])

    def stop(told):
        return told.round == 2

    got = oracle.sample(2, seed=0, callback=stop, keep_trajectory=True).trajectory
    assert torch.isfinite(got[:, :3]).all()
    assert got[:, 3:].isnan().all()
    got = parallel.sample(2, seed=0, callback=stop, keep_trajectory=True).trajectory
    # a window of one point, which the first guess needs, and one of three
    assert torch.isfinite(got[:, :5]).all()
    assert got[:, 5:].isnan().all()


@pytest.mark.skipif(triton_unavailable_reason() is not None, reason="no Triton")
@pytest.mark.skipif(
    _ext.unavailable_reason() is not None and os.environ.get("CTD_REQUIRE_EXT") != "1",
    reason="no extension",
)
def test_rounds_beside_the_model_record_the_same_and_forget():
    """The loop of a GPU with its buffers used twice and more samples than slots."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table = table_of(PROBLEMS[0], 4)

    class Module(torch.nn.Module):
        def forward(self, x, t):
            return mixture(table)(x, t)

    shared = {"shape": SHAPE, "solver": table, "dtype": torch.float64, "tolerance": 0.0}
    rows = {"window_size": 2, "max_rows": 3}
    parallel = ParallelSampler(Module(), backend="triton", device=device, **rows, **shared)
    settings = replace(parallel._settings, keep_trajectory=True)
    kept = KeptRounds()
    # the second run is stopped: nothing of the first may be left in its record
    for seed, last_round in ((0, 99), (1, 1)):

        def stop(told, last_round=last_round):
            return told.round == last_round

        with torch.inference_mode():
            request = parallel._request(3, seed, None, None, None, None, None)
            got = run_resident(request, settings, kept, callback=stop).trajectory
        oracle = ParallelSampler(Module(), backend="reference", **rows, **shared)
        expected = oracle.sample(3, seed=seed, keep_trajectory=True).trajectory
        got = got.cpu().view(expected.shape)
        is_whole = seed == 0
        assert bool(torch.isfinite(got).all()) == is_whole
        # one round makes the first point final
        last = table.num_nodes if is_whole else 1
        torch.testing.assert_close(
            got[:2, : last + 1], expected[:2, : last + 1], rtol=0.0, atol=1e-9
        )
