"""Any history of an engine: none lost, none finished twice, budget kept, nobody starves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from ctd_engine import ParallelSampler, StopReason, schedules
from ctd_engine._engine_core import EngineCore
from ctd_engine._engine_jobs import EngineFullError
from ctd_engine._handle import Handle, RequestState

SHAPE = (1, 2)
# a request may fail, or diverge, by its conditioning
FINE, RAISES, DIVERGES = 0.0, 1.0, 2.0
# more rounds than any request takes, were it alone
MOST_ROUNDS = 30


def model(x, t, kind):
    """Rows apart from each other; a row of the wrong kind takes the whole call down."""
    if (kind == RAISES).any():
        raise ArithmeticError("a row of this call raises")
    out = 0.3 * torch.tanh(x) + 0.001 * t[:, None, None]
    return out.where((kind != DIVERGES)[:, None, None], torch.nan)


def sampler(num_steps, window_size, max_rows=8):
    return ParallelSampler(
        model,
        shape=SHAPE,
        schedule=schedules.linear_beta(),
        num_steps=num_steps,
        window_size=window_size,
        max_rows=max_rows,
        null_cond={"kind": torch.zeros(1)},
        dtype=torch.float64,
    )


def checked(made, num_samples, seed, kind=FINE, guidance_scale=None):
    cond = {"kind": torch.full((num_samples,), kind)}
    return made._request(num_samples, seed, None, None, None, cond, guidance_scale)


@dataclass
class Submitted:
    handle: Handle
    kind: float
    priority: float
    finished: int = 0
    is_cancelled: bool = False
    seed: int = 0
    num_samples: int = 1
    window_size: int = 1
    num_steps: int = 1
    scale: float | None = None


class Histories(RuleBasedStateMachine):
    requests = Bundle("requests")

    @initialize(
        max_rows=st.integers(2, 12), max_active=st.integers(1, 4), max_queued=st.integers(1, 4)
    )
    def begin(self, max_rows, max_active, max_queued):
        self.now = 0.0
        self.core = EngineCore(
            max_rows=max_rows,
            max_active=max_active,
            max_queued=max_queued,
            clock=lambda: self.now,
        )
        self.max_rows, self.max_queued = max_rows, max_queued
        self.all = []
        self.shared_calls = None

    @rule(
        target=requests,
        num_samples=st.integers(1, 3),
        num_steps=st.integers(1, 6),
        window_size=st.integers(1, 4),
        kind=st.sampled_from([FINE, FINE, FINE, RAISES, DIVERGES]),
        priority=st.sampled_from([0.25, 1.0, 4.0]),
        scale=st.sampled_from([None, None, 2.0]),
        deadline_s=st.sampled_from([None, None, 2.5]),
    )
    def submit(self, num_samples, num_steps, window_size, kind, priority, scale, deadline_s):
        made = sampler(num_steps, window_size)
        seed = len(self.all)
        request = checked(made, num_samples, seed, kind, scale)
        self.shared_calls = self.shared_calls or request.denoiser.calls
        request.denoiser.calls = self.shared_calls
        rows = self.max_rows // request.denoiser.evaluations_per_row

        def submit():
            return self.core.submit(
                request,
                replace(made._settings, max_rows=rows),
                priority=priority,
                deadline_s=deadline_s,
            )

        if self.core.stats.num_queued >= self.max_queued:
            with pytest.raises(EngineFullError, match=f"{self.max_queued} requests wait already"):
                submit()
            return multiple()
        handle = submit()
        one = Submitted(
            handle,
            kind,
            priority,
            seed=seed,
            num_samples=num_samples,
            window_size=window_size,
            num_steps=num_steps,
            scale=scale,
        )
        handle._future.add_done_callback(lambda _: setattr(one, "finished", one.finished + 1))
        self.all.append(one)
        return one

    @rule(one=requests)
    def cancel(self, one):
        one.is_cancelled = one.is_cancelled or not one.handle.done()
        one.handle.cancel()

    @rule(times=st.integers(1, 3))
    def step(self, times):
        for _ in range(times):
            self.now += 1.0
            assert self.core.step() <= self.max_rows

    @rule()
    def shut_down(self):
        self.core.cancel_all()
        for one in self.all:
            one.is_cancelled = one.is_cancelled or not one.handle.done()
        self.drain(limit=1)

    @invariant()
    def counts_add_up(self):
        if not hasattr(self, "core"):
            return
        stats = self.core.stats
        ended = stats.num_finished + stats.num_cancelled + stats.num_failed
        assert ended + stats.num_queued + stats.num_running == len(self.all)
        assert ended == sum(one.handle.done() for one in self.all)
        assert all(one.finished == one.handle.done() for one in self.all)
        assert all(one.handle.progress.state.is_final == one.handle.done() for one in self.all)

    def drain(self, limit):
        steps = 0
        while self.core.has_work:
            self.core.step()
            steps += 1
            assert steps <= limit
        for one in self.all:
            self.check_end(one)

    def check_end(self, one):
        state = one.handle.progress.state
        if one.kind == RAISES and state is RequestState.FAILED:
            with pytest.raises(ArithmeticError, match="a row of this call raises"):
                one.handle.result(0)
            return
        # nobody fails by another's fault
        result = one.handle.result(0)
        assert result.samples.shape == (one.num_samples, *SHAPE)
        reasons = set(result.stop_reasons)
        if state is RequestState.CANCELLED:
            assert one.is_cancelled
        elif StopReason.DEADLINE in reasons:
            assert result.stats.wall_time_s >= 2.5
        elif one.kind == DIVERGES:
            assert reasons == {StopReason.DIVERGED}
        else:
            # exactly what it would have been alone
            assert reasons == {StopReason.CONVERGED}
            made = sampler(one.num_steps, one.window_size, self.max_rows // (2 if one.scale else 1))
            alone = made.sample(
                one.num_samples,
                seed=one.seed,
                cond={"kind": torch.zeros(one.num_samples)},
                guidance_scale=one.scale,
            )
            assert torch.equal(result.samples, alone.samples)
            assert result.stats.rounds == alone.stats.rounds

    def teardown(self):
        if hasattr(self, "core"):
            self.drain(limit=MOST_ROUNDS * (len(self.all) + 1))


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=60,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def run(core, *submissions):
    """Steps until all have ended; the rounds that each took part in."""
    rounds = {handle: [] for handle in submissions}
    number = 0
    while core.has_work:
        before = {handle: handle.progress.rounds for handle in submissions}
        core.step()
        for handle in submissions:
            if handle.progress.rounds > before[handle]:
                rounds[handle].append(number)
        number += 1
    return rounds


def test_a_large_request_waits_at_most_for_its_turn():
    core = EngineCore(max_rows=8, max_active=8, max_queued=8)
    large, small = sampler(40, 8), sampler(60, 2)
    handles = [core.submit(checked(large, 1, 0), large._settings)]
    handles += [core.submit(checked(small, 1, 1 + i), small._settings) for i in range(4)]
    waits = run(core, *handles)[handles[0]]
    # after its one-point round it needs the whole budget, which four small ones fill together
    assert max(b - a for a, b in pairwise(waits)) <= 8 // 2 + 1


def test_priority_is_a_share_of_the_rows():
    core = EngineCore(max_rows=4, max_active=8, max_queued=8)
    made = sampler(200, 4, max_rows=4)
    slow = core.submit(checked(made, 1, 0), made._settings, priority=1.0)
    fast = core.submit(checked(made, 1, 1), made._settings, priority=3.0)
    for _ in range(41):
        core.step()
    rows = [handle.progress.evaluations for handle in (slow, fast)]
    assert 2.6 <= rows[1] / rows[0] <= 3.4
    core.cancel_all()
    core.step()


def test_short_requests_overtake_in_the_queue_and_long_ones_are_not_forgotten():
    core = EngineCore(max_rows=4, max_active=1, max_queued=64)
    long, short = sampler(40, 4, max_rows=4), sampler(2, 4, max_rows=4)
    running = core.submit(checked(long, 1, 0), long._settings)
    core.step()
    waiting = core.submit(checked(long, 1, 1), long._settings)
    brief = core.submit(checked(short, 1, 2), short._settings)
    order = []
    for name, handle in (("running", running), ("waiting", waiting), ("brief", brief)):
        handle._future.add_done_callback(lambda _, name=name: order.append(name))
    number = 3
    # a stream of short ones that never ends
    while not waiting.done() and number < 400:
        if core.stats.num_queued < 8:
            core.submit(checked(short, 1, number), short._settings)
            number += 1
        core.step()
    assert order[:2] == ["running", "brief"]
    assert waiting.done()
    core.cancel_all()
    core.step()


def test_a_deadline_ends_a_request_with_what_there_is():
    now = [0.0]
    core = EngineCore(max_rows=8, max_active=1, max_queued=8, clock=lambda: now[0])
    made = sampler(50, 4)
    handle = core.submit(checked(made, 1, 0), made._settings, deadline_s=3.0)
    never = core.submit(checked(made, 1, 1), made._settings, deadline_s=3.0)
    for second in range(5):
        now[0] = float(second)
        core.step()
    result = handle.result(0)
    assert result.stop_reasons == [StopReason.DEADLINE]
    assert torch.isfinite(result.samples).all()
    assert result.stats.rounds == 3
    assert handle.progress.state is RequestState.FINISHED
    # one that never began has nothing
    assert never.result(0).stop_reasons == [StopReason.DEADLINE]
    assert torch.isnan(never.result(0).samples).all()
    assert never.result(0).stats.queued_s == 3.0
    assert not core.has_work


def test_abort_gives_everyone_the_error():
    core = EngineCore(max_rows=8, max_active=1, max_queued=8)
    made = sampler(50, 4)
    handles = [core.submit(checked(made, 1, seed), made._settings) for seed in range(3)]
    core.step()
    core.abort(KeyboardInterrupt())
    for handle in handles:
        with pytest.raises(RuntimeError, match="the engine stopped because of an error"):
            handle.result(0)
    assert not core.has_work


def test_newcomers_do_not_push_aside_who_runs():
    core = EngineCore(max_rows=4, max_active=8, max_queued=64)
    long, short = sampler(30, 4, max_rows=4), sampler(8, 4, max_rows=4)
    running = core.submit(checked(long, 1, 0), long._settings)
    for _ in range(6):
        core.step()
    before = running.progress.rounds
    for number in range(60):
        core.submit(checked(short, 1, 1 + number), short._settings)
        core.step()
        if running.done():
            break
    # eight at a time share the rounds, and it gets one in nine or more
    assert running.done() or running.progress.rounds - before >= 60 // 9
    core.cancel_all()
    core.step()
