"""The window scheduler: windows, fairness, endings, refusals; and both implementations alike."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ctd_engine import _ext
from ctd_engine.scheduling import make_scheduler
from ctd_engine.scheduling.plan import CANCELLED, CONVERGED, DIVERGED, MAX_ROUNDS, RoundPlan
from ctd_engine.scheduling.python import share_rows

FIELDS = tuple(RoundPlan.__dataclass_fields__)
# with CTD_REQUIRE_EXT=1 a missing extension fails the tests instead of skipping them
NEEDS_EXTENSION = pytest.mark.skipif(
    _ext.unavailable_reason() is not None and os.environ.get("CTD_REQUIRE_EXT") != "1",
    reason=f"the extension is not built: {_ext.unavailable_reason()}",
)
BACKENDS = [pytest.param("cpp", marks=NEEDS_EXTENSION), "python"]

DEFAULTS = dict(
    num_samples=3,
    num_nodes=10,
    window_size=4,
    max_rows=100,
    num_slots=3,
    first_length=4,
    max_rounds=10,
    lockstep=False,
)


def make(backend, **changes):
    return make_scheduler(**{**DEFAULTS, **changes}, backend=backend)


def step(scheduler, accepted, finite=None):
    lengths = scheduler.plan().length
    finite = lengths if finite is None else np.array(finite)
    return scheduler.step(np.minimum(np.array(accepted), lengths), finite)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 300), st.integers(0, 50)
)
def test_rows_are_shared_fairly(wanted, spare, turn):
    max_rows = len(wanted) + spare
    given_rows = share_rows(wanted, max_rows, turn)
    assert sum(given_rows) == min(sum(wanted), max_rows)
    assert all(1 <= g <= w for g, w in zip(given_rows, wanted, strict=True))
    # who got less than it wanted has no neighbour with two rows more
    hungry = [g for g, w in zip(given_rows, wanted, strict=True) if g < w]
    assert not hungry or max(given_rows) <= min(hungry) + 1


def test_the_remainder_goes_round():
    assert [share_rows([5, 5, 5], 7, turn) for turn in range(4)] == [
        [3, 2, 2],
        [2, 3, 2],
        [2, 2, 3],
        [3, 2, 2],
    ]


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
    assert scheduler.plan() is plan


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
    assert (diverged.sample, diverged.reason, diverged.start) == (1, DIVERGED, 0)
    assert scheduler.plan().known.tolist() == [1, 4]
    ended = step(scheduler, [1, 1])
    assert [end.reason for end in ended] == [MAX_ROUNDS, MAX_ROUNDS]
    assert scheduler.plan() is None
    assert scheduler.num_finished == 3


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
    assert scheduler.plan() is None
    assert scheduler.cancel() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_at_most_as_many_rounds_as_nodes(backend):
    scheduler = make(backend)
    while scheduler.plan() is not None:
        step(scheduler, [1, 1, 1])
    assert scheduler.round == 10


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
    ],
)
def test_step_rejects_and_nothing_moves(backend, accepted, finite, match):
    scheduler = make(backend)
    with pytest.raises(ValueError, match=r"call plan\(\) first"):
        scheduler.step(np.array([1, 1, 1]), np.array([4, 4, 4]))
    before = scheduler.plan()
    with pytest.raises(ValueError, match=match):
        scheduler.step(np.array(accepted), np.array(finite))
    assert scheduler.round == 0
    assert scheduler.plan() is before


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        *(({name: 0}, f"{name} must be an integer >= 1") for name in list(DEFAULTS)[:-1]),
        ({"max_rows": 2}, "max_rows must be at least num_slots = 3"),
        ({"lockstep": True, "num_slots": 2}, "num_slots must be at least num_samples"),
        ({"lockstep": True, "max_rows": 11}, "lockstep needs whole windows"),
        ({"backend": "rust"}, 'backend must be one of "cpp", "python"'),
    ],
    ids=str,
)
def test_rejects(changes, match):
    with pytest.raises(ValueError, match=match):
        make_scheduler(**{**DEFAULTS, "backend": "python", **changes})


def test_without_the_extension(monkeypatch):
    monkeypatch.setattr(_ext, "_import", lambda: (None, "no such file"))
    monkeypatch.delenv("CTD_REQUIRE_EXT", raising=False)
    _ext._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"no such file\. Install a C\+\+ compiler"):
        make(None)
    make(None)  # a second warning would be an error here
    with pytest.raises(RuntimeError, match=r"ctd_engine\._C cannot be loaded: no such file"):
        make("cpp")
    monkeypatch.setenv("CTD_REQUIRE_EXT", "1")
    with pytest.raises(RuntimeError, match="cannot be loaded"):
        make(None)


class Twins(RuleBasedStateMachine):
    """C++ and Python side by side through random histories: decision for decision."""

    @initialize(data=st.data())
    def begin(self, data):
        draw = data.draw
        self.num_samples = draw(st.integers(1, 6))
        self.num_nodes = draw(st.integers(1, 30))
        window_size = draw(st.integers(1, 40))
        num_slots = draw(st.integers(1, 6))
        lockstep = draw(st.booleans())
        if lockstep:
            num_slots = self.num_samples
            self.max_rows = self.num_samples * window_size + draw(st.integers(0, 5))
        else:
            self.max_rows = num_slots + draw(st.integers(0, 60))
        sizes = dict(
            num_samples=self.num_samples,
            num_nodes=self.num_nodes,
            window_size=window_size,
            max_rows=self.max_rows,
            num_slots=num_slots,
            first_length=draw(st.sampled_from([1, window_size])),
            max_rounds=draw(st.integers(1, 40)),
            lockstep=lockstep,
        )
        self.twins = [make_scheduler(**sizes, backend=backend) for backend in ("cpp", "python")]
        self.ends = []

    def plans(self):
        cpp, python = (twin.plan() for twin in self.twins)
        assert (cpp is None) == (python is None)
        if cpp is not None:
            for name in FIELDS:
                np.testing.assert_array_equal(getattr(cpp, name), getattr(python, name))
        return cpp

    @rule(data=st.data())
    def play(self, data):
        """Up to ten rounds of random advances, with points that are not finite now and then."""
        for _ in range(data.draw(st.integers(1, 10))):
            plan = self.plans()
            if plan is None:
                return
            pairs = []
            for length in plan.length.tolist():
                all_finite = data.draw(st.integers(0, 4)) > 0
                finite = length if all_finite else data.draw(st.integers(0, length))
                pairs.append((data.draw(st.integers(1, max(1, finite))), finite))
            accepted, finite = np.array(pairs).T
            cpp, python = (twin.step(accepted, finite) for twin in self.twins)
            assert cpp == python
            self.ends += cpp

    @precondition(lambda self: self.twins[0].num_active > 0)
    @rule(which=st.sampled_from(["accepted", "finite", "size"]), by=st.integers(1, 100))
    def refuse(self, which, by):
        plan = self.plans()
        accepted, finite = np.ones_like(plan.length), plan.length.copy()
        if which == "size":
            accepted = np.ones(len(accepted) + by, dtype=np.int64)
        elif which == "accepted":
            accepted[-1] = finite[-1] + by
        else:
            finite[-1] += by
        said = []
        for twin in self.twins:
            with pytest.raises(ValueError) as error:  # noqa: PT011 (compared below)
                twin.step(accepted, finite)
            said.append(str(error.value))
        assert said[0] == said[1]

    @rule(really=st.integers(0, 9))
    def cancel(self, really):
        if really == 0:
            cpp, python = (twin.cancel() for twin in self.twins)
            assert cpp == python
            self.ends += cpp

    @invariant()
    def counters_agree_and_nothing_is_lost(self):
        if not hasattr(self, "twins"):
            return
        for name in ("round", "num_active", "num_waiting", "num_finished"):
            assert getattr(self.twins[0], name) == getattr(self.twins[1], name)
        plan = self.plans()
        twin = self.twins[0]
        assert twin.num_active + twin.num_waiting + twin.num_finished == self.num_samples
        samples = [end.sample for end in self.ends]
        assert len(samples) == len(set(samples)) == twin.num_finished
        if plan is not None:
            assert plan.length.min() >= 1
            assert plan.length.sum() <= self.max_rows
            assert (plan.start + plan.length).max() <= self.num_nodes
            assert ((plan.start <= plan.known) & (plan.known <= plan.start + plan.length)).all()


TestTwins = NEEDS_EXTENSION(Twins.TestCase)
Twins.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
