"""The window scheduler, C++ and Python: windows, fairness, endings and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctd_engine import _ext
from ctd_engine.scheduling import make_scheduler
from ctd_engine.scheduling.plan import CANCELLED, CONVERGED, DIVERGED, MAX_ROUNDS, RoundPlan
from ctd_engine.scheduling.python import PyWindowScheduler, share_rows
from scheduler_problem import BACKENDS, DEFAULTS, NEEDS_EXTENSION, make, step

FIELDS = tuple(RoundPlan.__dataclass_fields__)
# the same examples on every machine
REPEATABLE = settings(deadline=None, derandomize=True, database=None)
INT64 = np.iinfo(np.int64)


def state(scheduler):
    counters = ("round", "num_active", "num_waiting", "num_finished")
    return tuple(getattr(scheduler, name) for name in counters)


def assert_fair(given_rows, wanted, max_rows, turn):
    """Max-min fairness, from its definition, with the level found by trying every one."""
    levels = range(max(wanted) + 1)
    level = max(k for k in levels if sum(min(want, k) for want in wanted) <= max_rows)
    pairs = list(zip(given_rows, wanted, strict=True))
    assert sum(given_rows) == min(sum(wanted), max_rows)
    assert all(min(want, level) <= got <= min(want, level + 1) for got, want in pairs)
    # nobody who wanted more has two rows fewer than another
    hungry = [got for got, want in pairs if got < want]
    assert not hungry or max(given_rows) <= min(hungry) + 1
    # the remainder went to the first ones that wanted more, from the entry whose turn it is
    order = [(turn + i) % len(wanted) for i in range(len(wanted))]
    order = [entry for entry in order if wanted[entry] > level]
    extra = max_rows - sum(min(want, level) for want in wanted) if order else 0
    assert {e for e in order if given_rows[e] > level} == set(order[:extra])


@REPEATABLE
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 300), st.integers(0, 50)
)
def test_rows_are_shared_fairly(wanted, spare, turn):
    max_rows = len(wanted) + spare
    assert_fair(share_rows(wanted, max_rows, turn), wanted, max_rows, turn)


def random_history(scheduler, seed):
    """Every plan of a run with random advances and divergences, and every ending."""
    rng = np.random.default_rng(seed)
    plans, ends = [], []
    while (plan := scheduler.plan()) is not None:
        finite = np.where(rng.random(len(plan.length)) < 0.9, plan.length, 0)
        accepted = rng.integers(1, np.maximum(finite, 1), endpoint=True)
        plans.append(plan)
        ends += scheduler.step(accepted, finite)
    return plans, ends


@pytest.mark.parametrize("backend", BACKENDS)
@REPEATABLE
@given(
    num_samples=st.integers(1, 12),
    num_nodes=st.integers(1, 40),
    window_size=st.integers(1, 50),
    num_slots=st.integers(1, 12),
    first_length=st.integers(1, 50),
    spare=st.integers(0, 60),
    seed=st.integers(0, 999),
)
def test_every_round_is_fair_and_lists_its_rows(backend, spare, seed, **sizes):
    max_rows = sizes["num_slots"] + spare
    scheduler = make(backend, **sizes, max_rows=max_rows, max_rounds=1000)
    plans, ends = random_history(scheduler, seed)
    seen = set()
    for turn, plan in enumerate(plans):
        wanted = []
        for sample, start in zip(plan.sample.tolist(), plan.start.tolist(), strict=True):
            whole = min(sizes["window_size"], sizes["num_nodes"] - start)
            wanted.append(whole if sample in seen else min(sizes["first_length"], whole))
            seen.add(sample)
        assert_fair(plan.length.tolist(), wanted, max_rows, turn)
        rows = [
            (plan.slot[a], plan.sample[a], plan.start[a] + offset, a, offset)
            for a in range(len(plan.slot))
            for offset in range(plan.length[a])
        ]
        columns = (plan.row_slot, plan.row_sample, plan.row_node, plan.row_entry, plan.row_offset)
        assert list(zip(*columns, strict=True)) == rows
        assert (np.diff(plan.slot) > 0).all()
        assert (plan.start + plan.length <= sizes["num_nodes"]).all()
        assert ((plan.start <= plan.known) & (plan.known <= plan.start + plan.length)).all()
    assert sorted(end.sample for end in ends) == list(range(sizes["num_samples"]))
    assert sum(end.evaluations for end in ends) == sum(len(plan.row_slot) for plan in plans)


@pytest.mark.parametrize("backend", BACKENDS)
def test_deterministic(backend):
    sizes = dict(num_samples=9, num_nodes=30, window_size=7, max_rows=17, num_slots=4)
    (plans, ends), (again, ends_again) = (
        random_history(make(backend, **sizes, max_rounds=12), seed=3) for _ in range(2)
    )
    assert ends == ends_again
    for plan, other in zip(plans, again, strict=True):
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(plan, name), getattr(other, name))


def test_the_remainder_goes_round():
    assert [share_rows([5, 5, 5], 7, turn) for turn in range(4)] == [
        [3, 2, 2],
        [2, 3, 2],
        [2, 2, 3],
        [3, 2, 2],
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_turn_moves_every_round(backend):
    scheduler = make(backend, num_nodes=50, max_rows=7)
    for length in ([3, 2, 2], [2, 3, 2], [2, 2, 3], [3, 2, 2]):
        assert scheduler.plan().length.tolist() == length
        step(scheduler, [1, 1, 1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_list_the_windows(backend):
    scheduler = make(backend)
    plan = scheduler.plan()
    assert all(getattr(plan, name).dtype == np.int64 for name in FIELDS)
    assert plan.slot.tolist() == plan.sample.tolist() == [0, 1, 2]
    assert plan.known.tolist() == plan.start.tolist() == [0, 0, 0]
    step(scheduler, [1, 4, 2])
    plan = scheduler.plan()
    assert plan.start.tolist() == [1, 4, 2]
    assert plan.length.tolist() == [4, 4, 4]
    assert plan.known.tolist() == [4, 4, 4]
    assert plan.row_node.tolist() == [1, 2, 3, 4, 4, 5, 6, 7, 2, 3, 4, 5]
    assert plan.row_entry.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert plan.row_offset.tolist() == [0, 1, 2, 3] * 3
    assert plan.row_sample.tolist() == plan.row_slot.tolist() == plan.row_entry.tolist()
    # planned once: asking again changes nothing
    assert scheduler.plan() is plan
    assert state(scheduler) == (1, 3, 0, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_windows_end_at_the_last_node(backend):
    scheduler = make(backend, num_samples=1, num_slots=1, window_size=50, first_length=50)
    assert scheduler.plan().length.tolist() == [10]
    (end,) = step(scheduler, [10])
    assert end == (0, 0, CONVERGED, 1, 10, 10, 10)
    assert scheduler.plan() is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_slots_are_handed_on_in_order(backend):
    scheduler = make(backend, num_samples=4, num_slots=2, window_size=10, first_length=10)
    assert (scheduler.num_active, scheduler.num_waiting) == (0, 4)
    scheduler.plan()
    assert (scheduler.num_active, scheduler.num_waiting) == (2, 2)
    (end,) = step(scheduler, [3, 10])
    assert (end.sample, end.slot, end.reason) == (1, 1, CONVERGED)
    plan = scheduler.plan()
    assert plan.sample.tolist() == [0, 2]
    assert plan.start.tolist() == [3, 0]
    assert plan.known.tolist() == [10, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_window_that_shrinks_forgets_its_far_points(backend):
    scheduler = make(backend, num_samples=3, num_slots=2, window_size=8, first_length=8, max_rows=9)
    assert scheduler.plan().length.tolist() == [5, 4]
    step(scheduler, [1, 1])
    # the turn moved on: entry 0 gets four rows now and drops its fifth point
    plan = scheduler.plan()
    assert plan.length.tolist() == [4, 5]
    assert plan.known.tolist() == [5, 4]
    assert (plan.known <= plan.start + plan.length).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_length(backend):
    scheduler = make(backend, first_length=1)
    assert scheduler.plan().length.tolist() == [1, 1, 1]
    step(scheduler, [1, 1, 1])
    assert scheduler.plan().length.tolist() == [4, 4, 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_endings(backend):
    scheduler = make(backend, max_rounds=2)
    (diverged,) = step(scheduler, [1, 9, 4], [1, 0, 4])
    assert diverged == (1, 1, DIVERGED, 1, 4, 0, 0)
    # the others move as if nothing had happened
    assert scheduler.plan().start.tolist() == [1, 4]
    assert scheduler.plan().known.tolist() == [1, 4]
    ended = step(scheduler, [1, 1])
    assert ended == [(0, 0, MAX_ROUNDS, 2, 8, 2, 5), (2, 2, MAX_ROUNDS, 2, 8, 5, 8)]
    assert scheduler.plan() is None
    assert scheduler.num_finished == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_last_round_may_still_converge(backend):
    scheduler = make(backend, num_samples=1, window_size=10, first_length=10, max_rounds=1)
    assert [end.reason for end in step(scheduler, [10])] == [CONVERGED]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("accepted", [0, -1, INT64.min, INT64.max])
@pytest.mark.parametrize("lockstep", [False, True])
def test_what_a_diverged_sample_accepted_is_ignored(backend, accepted, lockstep):
    scheduler = make(backend, lockstep=lockstep)
    scheduler.plan()
    ends = scheduler.step(np.array([accepted, 2, 2]), np.array([0, 4, 4]))
    assert [(end.sample, end.reason) for end in ends] == [(0, DIVERGED)]
    assert scheduler.plan().start.tolist() == [2, 2]
    ends = scheduler.step(np.array([accepted] * 2), np.array([0, 0]))
    assert [end.reason for end in ends] == [DIVERGED, DIVERGED]
    assert scheduler.plan() is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_lockstep_takes_the_least_advance(backend):
    scheduler = make(backend, lockstep=True)
    step(scheduler, [4, 2, 3])
    assert scheduler.plan().start.tolist() == [2, 2, 2]
    # a sample that diverges holds nobody back
    step(scheduler, [9, 3, 4], [0, 4, 4])
    assert scheduler.plan().start.tolist() == [5, 5]


@pytest.mark.parametrize("backend", BACKENDS)
def test_cancel(backend):
    scheduler = make(backend, num_samples=5, num_slots=2)
    step(scheduler, [2, 1])
    scheduler.plan()
    ends = scheduler.cancel()
    assert [end.sample for end in ends] == [0, 1, 2, 3, 4]
    assert [end.slot for end in ends] == [0, 1, -1, -1, -1]
    assert {end.reason for end in ends} == {CANCELLED}
    assert state(scheduler) == (1, 0, 0, 5)
    assert scheduler.plan() is None
    assert scheduler.cancel() == []
    with pytest.raises(ValueError, match=r"call plan\(\) first"):
        scheduler.step(np.array([1, 1]), np.array([4, 4]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_at_most_as_many_rounds_as_nodes(backend):
    scheduler = make(backend)
    while scheduler.plan() is not None:
        ends = step(scheduler, [1, 1, 1])
    assert scheduler.round == 10
    assert [end.reason for end in ends] == [CONVERGED] * 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("accepted", "finite", "match"),
    [
        ([1, 1], [4, 4, 4], r"accepted must have one entry per active sample, shape \(3,\)"),
        ([1, 1, 1], [4], "finite must have one entry per active sample"),
        ([1, 1, 1], [4, 5, 4], r"finite\[1\] must be in \[0, 4\], got 5"),
        ([1, 1, 1], [4, 4, -1], r"finite\[2\] must be in \[0, 4\], got -1"),
        ([0, 1, 1], [4, 4, 4], r"accepted\[0\] must be in \[1, finite = 4\], got 0"),
        ([1, 3, 1], [4, 2, 4], r"accepted\[1\] must be in \[1, finite = 2\], got 3"),
        ([1, 1, INT64.min], [4, 4, 4], r"accepted\[2\] must be in \[1, finite = 4\], got -9"),
        ([[1, 1, 1]], [4, 4, 4], r"accepted .* shape \(3,\), got \(1, 3\)"),
        ([1.0, 1.0, 1.5], [4, 4, 4], "accepted must hold signed integers, got float64"),
        ([1, 1, 1], [4, 4, np.nan], "finite must hold signed integers, got float64"),
    ],
)
def test_step_rejects_and_nothing_moves(backend, accepted, finite, match):
    scheduler = make(backend)
    with pytest.raises(ValueError, match=r"call plan\(\) first"):
        scheduler.step(np.array([1, 1, 1]), np.array([4, 4, 4]))
    before = scheduler.plan()
    with pytest.raises(ValueError, match=match):
        scheduler.step(np.array(accepted), np.array(finite))
    assert state(scheduler) == (0, 3, 0, 0)
    assert scheduler.plan() is before
    # what comes next is what would have come without the refusal
    untouched = make(backend)
    assert step(scheduler, [1, 2, 4]) == step(untouched, [1, 2, 4])
    for name in FIELDS:
        np.testing.assert_array_equal(
            getattr(scheduler.plan(), name), getattr(untouched.plan(), name)
        )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        *(({name: 0}, f"{name} must be an integer >= 1") for name in list(DEFAULTS)[:-1]),
        ({"max_rows": 2}, "max_rows must be at least num_slots = 3"),
        ({"lockstep": True, "num_slots": 2}, "num_slots must be at least num_samples"),
        ({"lockstep": True, "max_rows": 11}, "lockstep needs whole windows"),
        ({"window_ratio": 255}, r"window_ratio must be 0, or from 256 .* to 65536, got 255"),
        ({"window_ratio": -1}, "window_ratio must be 0, or from 256"),
        ({"window_ratio": 65537}, "window_ratio must be 0, or from 256"),
        ({"first_window": 0}, "first_window must be an integer >= 1"),
        ({"first_window": 5}, "first_window must be at most window_size = 4, got 5"),
        ({"backend": "rust"}, 'backend must be one of "cpp", "python"'),
    ],
    ids=str,
)
def test_rejects(changes, match):
    with pytest.raises(ValueError, match=match):
        make_scheduler(**{**DEFAULTS, "backend": "python", **changes})


@pytest.fixture
def no_extension(monkeypatch):
    """As if the extension were not built, in a process that has not warned yet."""
    monkeypatch.setattr(_ext, "_import", lambda: (None, "no such file"))
    monkeypatch.delenv("CTD_REQUIRE_EXT", raising=False)
    _ext._warn_once.cache_clear()
    yield
    _ext._warn_once.cache_clear()


@pytest.mark.usefixtures("no_extension")
def test_without_the_extension_python_serves_with_one_warning():
    with pytest.warns(RuntimeWarning, match=r"no such file\. Install a C\+\+ compiler") as caught:
        schedulers = [make(None), make(None)]
    assert len(caught) == 1
    assert {type(scheduler) for scheduler in schedulers} == {PyWindowScheduler}


@pytest.mark.usefixtures("no_extension")
def test_without_the_extension_cpp_is_refused_with_the_reason():
    with pytest.raises(RuntimeError, match=r"ctd_engine\._C cannot be loaded: no such file"):
        make("cpp")


@pytest.mark.usefixtures("no_extension")
def test_a_required_extension_is_never_replaced(monkeypatch):
    monkeypatch.setenv("CTD_REQUIRE_EXT", "1")
    with pytest.raises(RuntimeError, match=r"cannot be loaded: no such file.*CTD_BUILD_EXT=1"):
        make(None)
    # who names the Python scheduler gets it
    assert type(make("python")) is PyWindowScheduler


@NEEDS_EXTENSION
def test_the_extension_is_the_default():
    assert type(make(None)) is type(make("cpp")) is not PyWindowScheduler
