"""Windows whose far points have fewer rows than points: exact at tolerance 0, and cheaper above."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ctd_engine import ParallelSampler, SequentialSampler, StopReason, solvers
from ctd_engine._far_points import far_points
from ctd_engine._output_rule import OutputRule
from scheduler_problem import BACKENDS, make
from small_problems import SHAPE, mixture, table_of

SOLVERS = [
    ("ddpm", "linear_beta", "epsilon", {}),
    ("ddim", "cosine", "v", {}),
    ("heun", "karras", "edm", {}),
    ("dpmpp_2m", "linear_beta", "x0", {}),
    ("flow_euler", "flow", "flow", {}),
]


def sampled(table, cls=ParallelSampler, count=3, **options):
    sampler = cls(mixture(table), shape=SHAPE, solver=table, dtype=torch.float64, **options)
    return sampler.sample(count, seed=5)


@pytest.mark.parametrize("stride", [2, 3, 100])
@pytest.mark.parametrize("options", [{}, {"method": "secant", "guess": "prior"}], ids=str)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s[0])
def test_at_tolerance_0_the_samples_are_the_sequential_ones(solver, options, stride):
    table = table_of(solver, 24)
    want = sampled(table, SequentialSampler).samples
    windows = {"window_size": 17, "max_rows": 23}
    result = sampled(table, far_stride=stride, tolerance=0.0, **windows, **options)
    assert (result.samples - want).abs().max() <= 1e-9
    assert result.all_converged
    assert result.stats.rounds_per_sample.max() <= table.num_nodes


@pytest.mark.parametrize("solver", [SOLVERS[0], SOLVERS[1]], ids=lambda s: s[0])
def test_evaluations_fall_and_the_error_does_not_rise(solver):
    table = table_of(solver, 100)
    want = sampled(table, SequentialSampler, 16).samples
    shared = {"window_size": 100, "tolerance": 0.1, "max_rows": 1600, "method": "secant"}
    whole, far = (sampled(table, count=16, far_stride=s, **shared) for s in (1, 8))
    assert far.stats.evaluations <= whole.stats.evaluations / 1.3
    assert far.stats.rounds <= whole.stats.rounds + 3
    errors = [(r.samples - want).square().mean().sqrt() for r in (whole, far)]
    assert errors[1] <= 2 * errors[0] + 1e-3
    # every evaluation of the model is counted, and none that was not made
    assert far.stats.evaluations == far.stats.evaluations_per_sample.sum()


@pytest.mark.parametrize("rows", [1, 4])
def test_evaluations_are_the_rows_that_the_model_saw(rows):
    table, seen = table_of(SOLVERS[1], 40), []
    exact = mixture(table)

    def model(x, t):
        seen.append(len(x))
        return exact(x, t)

    sampler = ParallelSampler(
        model, shape=SHAPE, solver=table, window_size=40, far_stride=5, max_rows=40 * rows
    )
    stats = sampler.sample(rows, seed=0).stats
    assert stats.evaluations == sum(seen)
    assert stats.rounds == len(seen)


@pytest.mark.parametrize("backend", BACKENDS)
def test_points_lie_between_the_rows_of_their_own_window(backend):
    """A line in the node comes back whole, in windows of several lengths side by side."""
    scheduler = make(backend, num_nodes=40, window_size=30, first_length=30, far_stride=4)
    for _ in range(4):
        plan = scheduler.plan()
        far = far_points(plan, torch.float64, torch.device("cpu"))
        assert far is not None
        entry = np.repeat(np.arange(len(plan.slot)), plan.length)
        node = np.concatenate([np.arange(n) for n in plan.length]) + plan.start[entry]
        offset = 1000.0 * plan.row_entry - plan.row_node
        line = far.between(torch.from_numpy(offset)[:, None].repeat(1, 2))
        np.testing.assert_allclose(line[:, 1].numpy(), 1000.0 * entry - node, rtol=0, atol=1e-9)
        assert torch.equal(far.node, torch.from_numpy(plan.row_node))
        scheduler.step(np.minimum([1, 5, 9], plan.length), plan.length, plan.length // 2 + 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_follow_what_moved_little(backend):
    scheduler = make(
        backend, num_samples=1, num_slots=1, num_nodes=40, window_size=40, first_length=40,
        far_stride=8,
    )  # fmt: skip
    plan = scheduler.plan()
    assert plan.row_offset.tolist() == [*range(8), 15, 23, 31, 39]
    # 3 accepted and 20 near: 17 of the next window have rows
    scheduler.step(np.array([3]), np.array([40]), np.array([20]))
    plan = scheduler.plan()
    assert plan.dense.tolist() == [17]
    assert plan.row_node.tolist() == [*range(3, 20), 27, 35, 39]
    # no more than the points with rows of their own are passed
    ends = scheduler.step(np.array([37]), np.array([37]), np.array([37]))
    assert ends == []
    assert scheduler.plan().start.tolist() == [20]
    assert scheduler.plan().dense.tolist() == [20]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_short_budget_gives_shorter_windows(backend):
    scheduler = make(
        backend, num_samples=2, num_slots=2, num_nodes=100, window_size=64, first_length=64,
        max_rows=20, far_stride=8,
    )  # fmt: skip
    plan = scheduler.plan()
    # 8 rows for 8 points, 2 rows for 16 more
    assert plan.length.tolist() == [24, 24]
    assert len(plan.row_node) == 20


def bounded(table, **rule):
    return solvers.SolverTable(**{
        **{name: getattr(table, name) for name in table.__dataclass_fields__},
        "clip_x0": None, "rule": OutputRule(**rule),
    })  # fmt: skip


@pytest.mark.parametrize("name", ["clip", "quantile", "remainder"])
@pytest.mark.parametrize("solver", [SOLVERS[0], SOLVERS[1]], ids=lambda s: s[0])
def test_rules_of_the_output(solver, name):
    table = table_of(solver, 24)
    rule = {
        "clip": {"clip": 0.8},
        "quantile": {"quantile": 0.9, "max_value": 1.5},
        "remainder": {"clip": 0.8, "remainder": torch.linspace(0.1, 0.0, 24).double()},
    }[name]
    table = bounded(table, **rule)
    want = sampled(table, SequentialSampler).samples
    shared = {"window_size": 24, "far_stride": 4, "method": "secant"}
    result = sampled(table, tolerance=0.0, **shared)
    assert (result.samples - want).abs().max() <= 1e-9
    # far points need the rule too: with it few rounds are enough
    near = sampled(table, tolerance=0.05, **shared)
    assert near.stats.rounds <= 15
    assert (near.samples - want).square().mean().sqrt() <= 0.05


def test_refuses():
    table = table_of(SOLVERS[0], 24)
    for value, error in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="far_stride"):
            sampled(table, far_stride=value)
    learned = bounded(table, variance="learned")
    with pytest.raises(ValueError, match="far_stride must be 1 for a model with a learned var"):
        sampled(learned, far_stride=2)
    assert sampled(table, far_stride=3, window_size=8).all_converged


def failing(table, fails):
    """The exact model, NaN at the rows where `fails(node, first element)` says so."""
    exact, times = mixture(table), table.model_time

    def model(x, t):
        node = (t[:, None] - times.to(t)).abs().argmin(1)
        out = exact(x, t)
        return torch.where(fails(node)[(...,) + (None,) * (out.dim() - 1)], torch.nan, out)

    return model


def test_a_row_that_is_not_finite_harms_no_point_with_a_row_of_its_own():
    """Every row but those of the two open nodes fails: each window still moves point by point."""
    table = table_of(SOLVERS[1], 24)
    front = {"node": 0}

    def fails(node):
        low = int(node.min())
        front["node"] = low
        return node > low

    shared = dict(shape=SHAPE, solver=table, window_size=12, guess="zero", dtype=torch.float64)
    for stride in (1, 4):
        sampler = ParallelSampler(failing(table, fails), far_stride=stride, **shared)
        assert sampler.sample(1, seed=6).all_converged
    assert front["node"] == 23


def test_a_sample_that_diverges_harms_no_other():
    table = table_of(SOLVERS[0], 24)
    exact = mixture(table)

    def model(x, t, is_bad):
        return torch.where(is_bad[(...,) + (None,) * (x.dim() - 1)], torch.nan, exact(x, t))

    sampler = ParallelSampler(
        model, shape=SHAPE, solver=table, window_size=12, max_rows=24, guess="zero", far_stride=4
    )
    is_bad = torch.tensor([False, False, True, False])
    result = sampler.sample(4, seed=6, cond={"is_bad": is_bad})
    ended = [reason is StopReason.CONVERGED for reason in result.stop_reasons]
    assert ended == [True, True, False, True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_near_is_one_integer_per_sample(backend):
    scheduler = make(backend, far_stride=2)
    plan = scheduler.plan()
    with pytest.raises(ValueError, match="near must have one entry per active sample"):
        scheduler.step(np.ones(3, np.int64), plan.length, np.ones(1, np.int64))
    assert scheduler.round == 0
    assert scheduler.plan() is plan
