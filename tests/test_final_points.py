"""What a callback can read while a parallel run goes on: the points that no later round changes."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from ctd_engine import ParallelSampler, StopReason, _ext
from ctd_engine._resident_run import KeptRounds, run_resident
from ctd_engine.ops._dispatch import triton_unavailable_reason
from small_problems import PROBLEMS, SHAPE, mixture, table_of

F64 = torch.float64
HEUN = next(problem for problem in PROBLEMS if problem[0] == "heun")


class Follower:
    """Reads each point in the round in which it becomes final."""

    def __init__(self, num_samples):
        self.counts = torch.zeros(num_samples, dtype=torch.int64)
        self.x = [{} for _ in range(num_samples)]
        self.x0 = [{} for _ in range(num_samples)]
        self.rounds = 0

    def __call__(self, told):
        self.rounds += 1
        self.points = told.points
        counts = torch.from_numpy(told.points.num_final)
        assert (counts >= self.counts).all()
        for b, (before, count) in enumerate(zip(self.counts, counts, strict=True)):
            for node in range(int(before), int(count)):
                self.x[b][node] = told.points.x(node)[b]
                self.x0[b][node] = told.points.x0(node)[b]
        self.counts = counts


@pytest.mark.parametrize("tolerance", [0.0, 0.1])
@pytest.mark.parametrize("problem", [PROBLEMS[0], HEUN], ids=["ddpm", "heun"])
def test_points_are_read_once_and_stay(problem, tolerance):
    """More samples than fit at a time; every point is the final trajectory's."""
    table = table_of(problem, 9)
    model = mixture(table)
    sampler = ParallelSampler(
        model, shape=SHAPE, solver=table, window_size=4, max_rows=9, tolerance=tolerance, dtype=F64
    )
    follower = Follower(5)
    result = sampler.sample(5, seed=2, callback=follower, keep_trajectory=True)
    assert follower.counts.tolist() == [table.num_nodes] * 5
    assert follower.rounds == result.stats.rounds
    for b in range(5):
        x = torch.stack([follower.x[b][node] for node in range(table.num_nodes)])
        torch.testing.assert_close(x, result.trajectory[b, :-1], rtol=0, atol=0)
        x0 = torch.stack([follower.x0[b][node] for node in range(table.num_nodes)])
        p, q, scale = (v.reshape(-1, 1, 1) for v in (table.P, table.Q, table.input_scale))
        expected = p * x + q * model(scale * x, table.model_time)
        # above 0 the prediction is that of a state within the tolerance
        torch.testing.assert_close(x0, expected, rtol=0, atol=1e-9 if tolerance == 0 else 0.15)


def test_points_come_before_the_end():
    table = table_of(PROBLEMS[0], 40)
    sampler = ParallelSampler(mixture(table), shape=SHAPE, solver=table, window_size=8, dtype=F64)
    seen = []
    sampler.sample(
        2,
        seed=0,
        callback=lambda told: seen.append(int(told.points.num_final.min())),
        keep_trajectory=True,
    )
    assert len(set(seen)) > 4
    assert seen[len(seen) // 2] not in (0, table.num_nodes)


def test_without_keep_trajectory_there_are_none():
    table = table_of(PROBLEMS[0], 4)
    sampler = ParallelSampler(mixture(table), shape=SHAPE, solver=table, window_size=2, dtype=F64)
    points = []
    sampler.sample(1, seed=0, callback=lambda told: points.append(told.points))
    assert set(points) == {None}


def test_points_cannot_be_read_once_the_run_is_over():
    table = table_of(PROBLEMS[0], 4)
    sampler = ParallelSampler(mixture(table), shape=SHAPE, solver=table, window_size=2, dtype=F64)
    points = []
    sampler.sample(
        1, seed=0, callback=lambda told: points.append(told.points), keep_trajectory=True
    )
    assert points[-1].num_final.tolist() == [4]
    for read in (points[0].x, points[-1].x, points[-1].x0):
        with pytest.raises(RuntimeError, match=r"can be read until its sample\(\) returns"):
            read(0)


def test_a_sample_that_diverges_holds_back_nothing():
    table = table_of(PROBLEMS[0], 6)
    easy = mixture(table)

    def model(x, t, bad):
        return torch.where(bad[:, None, None] & (t < 500.0)[:, None, None], torch.nan, easy(x, t))

    sampler = ParallelSampler(model, shape=SHAPE, solver=table, window_size=2, dtype=F64)
    follower = Follower(2)
    cond = {"bad": torch.tensor([True, False])}
    result = sampler.sample(2, seed=0, cond=cond, callback=follower, keep_trajectory=True)
    assert result.stop_reasons == [StopReason.DIVERGED, StopReason.CONVERGED]
    assert follower.counts.tolist() == [6, 6]
    assert follower.x[0][5].isnan().all()
    assert follower.x[1][5].isfinite().all()


@pytest.mark.skipif(triton_unavailable_reason() is not None, reason="no Triton")
@pytest.mark.skipif(
    _ext.unavailable_reason() is not None and os.environ.get("CTD_REQUIRE_EXT") != "1",
    reason="no extension",
)
def test_rounds_beside_the_model_tell_the_same():
    """The loop of a GPU; its buffers are used again by a run in which a sample diverges."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table = table_of(PROBLEMS[0], 4)

    class Module(torch.nn.Module):
        def forward(self, x, t, bad):
            return torch.where(bad[:, None, None], torch.nan, mixture(table)(x, t))

    options = dict(window_size=2, max_rows=3, shape=SHAPE, solver=table, dtype=F64, tolerance=0.0)
    parallel = ParallelSampler(Module(), backend="triton", device=device, **options)
    settings = replace(parallel._settings, keep_trajectory=True, tells_points=True)
    kept = KeptRounds()
    for seed, bad in ((0, [False, False, False]), (1, [True, False, False])):
        follower, oracle = Follower(3), Follower(3)
        cond = {"bad": torch.tensor(bad)}
        with torch.inference_mode():
            request = parallel._request(3, seed, None, None, None, cond, None)
            run_resident(request, settings, kept, callback=follower)
        with pytest.raises(RuntimeError, match="can be read until"):
            follower.points.x(0)
        reference = ParallelSampler(Module(), backend="reference", **options)
        reference.sample(3, seed=seed, cond=cond, callback=oracle, keep_trajectory=True)
        assert follower.counts.tolist() == [4, 4, 4]
        for b, (got, expected) in enumerate(zip(follower.x0, oracle.x0, strict=True)):
            for node in range(4):
                close = dict(rtol=0, atol=1e-9, equal_nan=True)
                torch.testing.assert_close(got[node].cpu(), expected[node], **close)
                if not bad[b]:
                    x, other = follower.x[b][node].cpu(), oracle.x[b][node]
                    torch.testing.assert_close(x, other, **close)
