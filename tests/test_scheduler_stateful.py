"""The C++ and the Python scheduler side by side through random histories."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ctd_engine.scheduling import make_scheduler
from ctd_engine.scheduling.plan import RoundPlan
from scheduler_problem import NEEDS_EXTENSION

FIELDS = tuple(RoundPlan.__dataclass_fields__)
COUNTERS = ("round", "num_active", "num_waiting", "num_finished")
INT64 = np.iinfo(np.int64)


@st.composite
def configurations(draw):
    num_samples, num_nodes = draw(st.integers(1, 7)), draw(st.integers(1, 30))
    window_size = draw(st.integers(1, 40))
    num_slots = draw(st.integers(1, 8))
    lockstep = draw(st.booleans())
    if lockstep:
        num_slots += num_samples
        max_rows = max(num_slots, num_samples * min(window_size, num_nodes))
    else:
        max_rows = num_slots
    return dict(
        num_samples=num_samples,
        num_nodes=num_nodes,
        window_size=window_size,
        # from the least that is allowed to more than anyone can use
        max_rows=max_rows + draw(st.sampled_from([0, 1, 2, 5, 17, 300])),
        num_slots=num_slots,
        first_length=draw(st.sampled_from([1, 2, window_size, window_size + 3])),
        max_rounds=draw(st.sampled_from([1, 3, 10, 100])),
        lockstep=lockstep,
        window_ratio=draw(st.sampled_from([0, 256, 257, 500, 512, 1000, 65536])),
        first_window=draw(st.integers(1, window_size)),
        far_stride=draw(st.sampled_from([1, 1, 2, 3, 8, 50])),
    )


def assert_rows(plan, stride):
    """Every leading point has a row, then every stride-th, and the last."""
    for entry, (length, dense) in enumerate(zip(plan.length, plan.dense, strict=True)):
        assert min(stride, length) <= dense <= length
        assert stride > 1 or dense == length
        offsets = plan.row_offset[plan.row_entry == entry]
        assert offsets[:dense].tolist() == list(range(dense))
        assert offsets[-1] == length - 1
        assert (np.diff(offsets[dense - 1 :])[:-1] == stride).all()
        assert (np.diff(offsets[dense - 1 :]) <= stride).all()
    assert (plan.row_node == plan.start[plan.row_entry] + plan.row_offset).all()


class Twins(RuleBasedStateMachine):
    """Whatever is done to both, both answer alike; planning is a rule, so it may be left out."""

    @initialize(sizes=configurations())
    def begin(self, sizes):
        self.sizes = sizes
        self.twins = [make_scheduler(**sizes, backend=name) for name in ("cpp", "python")]
        self.is_planned = False
        self.ends = []

    @rule()
    def plan_again(self):
        self.plan()

    def plan(self):
        cpp, python = (twin.plan() for twin in self.twins)
        assert (cpp is None) == (python is None)
        self.is_planned = cpp is not None
        if cpp is None:
            return None
        for name in FIELDS:
            ours, theirs = getattr(cpp, name), getattr(python, name)
            assert ours.dtype == theirs.dtype == np.int64, name
            assert ours.tolist() == theirs.tolist(), name
        assert cpp.length.min() >= 1
        assert cpp.start.min() >= 0
        assert len(cpp.row_node) <= self.sizes["max_rows"]
        assert_rows(cpp, self.sizes["far_stride"])
        assert cpp.length.max() <= self.sizes["window_size"]
        assert (cpp.start + cpp.length).max() <= self.sizes["num_nodes"]
        assert ((cpp.start <= cpp.known) & (cpp.known <= cpp.start + cpp.length)).all()
        return cpp

    def step(self, accepted, finite, near=None):
        told = [np.array(v) for v in (accepted, finite, near) if v is not None]
        cpp, python = (twin.step(*told) for twin in self.twins)
        assert cpp == python
        self.is_planned = False
        self.ends += cpp

    @rule(data=st.data(), num_rounds=st.integers(1, 8), advance=st.sampled_from(["one", "any"]))
    def play(self, data, num_rounds, advance):
        """Rounds where now and then some or all new points of a window are not finite."""
        for _ in range(num_rounds):
            plan = self.plan()
            if plan is None:
                return
            accepted, finite = [], []
            for length in plan.length.tolist():
                kind = data.draw(st.integers(0, 9))
                finite.append(0 if kind == 0 else length)
                if kind == 1:
                    finite[-1] = data.draw(st.integers(0, length))
                if finite[-1] == 0:
                    # whatever became of a NaN: nobody may look at it
                    garbage = [INT64.min, -1, 0, 1, length + 1, INT64.max]
                    accepted.append(data.draw(st.sampled_from(garbage)))
                else:
                    most = 1 if advance == "one" else finite[-1]
                    accepted.append(data.draw(st.integers(1, most)))
            near = None
            if data.draw(st.booleans()):
                # it may reach beyond what is accepted, and garbage is clamped
                values = st.sampled_from([INT64.min, 0, 1, 2, 5, 13, INT64.max])
                near = [data.draw(values) for _ in accepted]
            self.step(accepted, finite, near)

    def refuse(self, accepted, finite):
        said = []
        for twin in self.twins:
            with pytest.raises(ValueError) as error:  # noqa: PT011 (the messages are compared)
                twin.step(accepted, finite)
            said.append(str(error.value))
        assert said[0] == said[1]

    @precondition(lambda self: not self.is_planned)
    @rule()
    def refuse_a_step_without_a_plan(self):
        num_active = self.twins[0].num_active
        self.refuse(np.ones(num_active, np.int64), np.ones(num_active, np.int64))

    @precondition(lambda self: self.is_planned)
    @rule(
        which=st.sampled_from(["accepted", "finite"]),
        wrong=st.sampled_from(["high", "low", "least", "longer", "shorter", "matrix", "nan"]),
        where=st.integers(0, 100),
    )
    def refuse_bad_input(self, which, wrong, where):
        before = self.plan()
        where %= len(before.length)
        values = {"accepted": np.ones_like(before.length), "finite": before.length.copy()}
        bad = values[which]
        if wrong == "high":
            bad[where] = before.length[where] + 1
        elif wrong == "low":
            bad[where] = 0 if which == "accepted" else -1
        elif wrong == "least":
            bad[where] = INT64.min
        elif wrong == "nan":
            bad = bad.astype(np.float64)
            bad[where] = np.nan
        else:
            bad = {"longer": np.append(bad, 1), "shorter": bad[1:], "matrix": bad[None]}[wrong]
        values[which] = bad
        self.refuse(**values)
        assert self.plan() is before

    @rule(really=st.integers(0, 9))
    def cancel(self, really):
        if really == 0:
            cpp, python = (twin.cancel() for twin in self.twins)
            assert cpp == python
            self.is_planned = False
            self.ends += cpp

    @invariant()
    def counters_agree(self):
        cpp, python = ([getattr(twin, name) for name in COUNTERS] for twin in self.twins)
        assert cpp == python
        assert sum(cpp[1:]) == self.sizes["num_samples"]
        assert len({end.sample for end in self.ends}) == len(self.ends) == cpp[3]

    def teardown(self):
        """Play on to the end: every sample finishes, once."""
        if not hasattr(self, "twins"):
            return
        while (plan := self.plan()) is not None:
            self.step(plan.length, plan.length)
            self.counters_agree()
        samples = sorted(end.sample for end in self.ends)
        assert samples == list(range(self.sizes["num_samples"]))


TestTwins = NEEDS_EXTENSION(Twins.TestCase)
Twins.TestCase.settings = settings(
    max_examples=120,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
