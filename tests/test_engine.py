"""The engine's thread: results, cancelling, previews, asyncio, shutting down, bad input."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
import torch

from ctd_engine import (
    Engine,
    ParallelSampler,
    Request,
    SequentialSampler,
    StopReason,
    schedules,
    solvers,
)
from ctd_engine.engine import EngineFullError, RequestState

SHAPE = (1, 2, 2)
# nothing here takes a second; a test that waits for ever says so
TIMEOUT = 60.0


def model(x, t, shift=None):
    out = 0.3 * torch.tanh(x) + 0.001 * t[:, None, None, None]
    return out if shift is None else out + 0.1 * shift[:, None, None, None]


class Gate:
    """The same model, held up in its first call until the test opens it."""

    def __init__(self):
        self.is_open = threading.Event()
        self.was_called = threading.Event()

    def __call__(self, x, t, **cond):
        self.was_called.set()
        assert self.is_open.wait(TIMEOUT)
        return model(x, t, **cond)


def engine(net=model, **options):
    settings = {
        "shape": SHAPE,
        "schedule": schedules.linear_beta(),
        "dtype": torch.float64,
        "null_cond": {"shift": torch.zeros(1)},
        "max_rows": 24,
    }
    return Engine(net, **{**settings, **options})


def sampler(kind=ParallelSampler, **options):
    return kind(
        model,
        shape=SHAPE,
        schedule=schedules.linear_beta(),
        dtype=torch.float64,
        null_cond={"shift": torch.zeros(1)},
        **options,
    )


REQUESTS = [
    {"num_steps": 30, "window_size": 7},
    {"num_steps": 12, "solver": "ddim", "num_samples": 3, "window_size": 12},
    {"num_steps": 25, "solver": "ddim", "solver_options": {"eta": 0.5}, "tolerance": 0.0},
    {"num_steps": 20, "solver": "dpmpp_2m", "tolerance": 0.01},
    {"num_steps": 15, "num_samples": 2, "cond": {"shift": torch.tensor([1.0, -1.0])}},
    {
        "num_steps": 18,
        "num_samples": 2,
        "cond": {"shift": torch.tensor([2.0, -1.0])},
        "guidance_scale": 2.0,
    },
    {"num_steps": 10, "method": "order_k", "guess": "copy", "clip_x0": 1.0},
]


def test_samples_are_those_of_the_sampler_whatever_runs_beside():
    with engine() as shared:
        handles = [
            shared.submit(Request(seed=number, **asked)) for number, asked in enumerate(REQUESTS)
        ]
        results = [handle.result(TIMEOUT) for handle in handles]
    sampling = ("num_samples", "cond", "guidance_scale")
    for number, (asked, result) in enumerate(zip(REQUESTS, results, strict=True)):
        call = {name: asked[name] for name in sampling if name in asked}
        made = {name: asked[name] for name in asked if name not in sampling}
        rows = 24 // (2 if "guidance_scale" in asked else 1)
        alone = sampler(**{"window_size": 16, "max_rows": rows, **made}).sample(seed=number, **call)
        assert torch.equal(result.samples, alone.samples)
        assert result.seeds == alone.seeds
        assert result.stats.evaluations == alone.stats.evaluations
        assert 0.0 <= result.stats.queued_s <= result.stats.wall_time_s
    stats = shared.stats
    assert stats.num_finished == len(REQUESTS)
    assert stats.evaluations == sum(result.stats.evaluations for result in results)
    # and in fewer calls than one request after the other would take
    assert stats.rounds < sum(result.stats.rounds for result in results)


def test_tolerance_zero_is_the_sequential_sampler():
    with engine() as shared:
        handles = [
            shared.submit(Request(num_steps=20, window_size=w, tolerance=0.0, seed=3))
            for w in (1, 4, 20)
        ]
        exact = sampler(SequentialSampler, num_steps=20).sample(1, seed=3)
        for handle in handles:
            error = (handle.result(TIMEOUT).samples - exact.samples).abs().max()
            assert error <= 1e-12


def test_a_table_of_its_own_and_explicit_noise():
    table = solvers.build("ddim", schedules.cosine(), 8)
    start = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with engine() as shared:
        handle = shared.submit(Request(solver=table, num_samples=2, x_init=start, tolerance=0.0))
        result = handle.result(TIMEOUT)
    exact = sampler(SequentialSampler, solver=table).sample(2, x_init=start)
    assert (result.samples - exact.samples).abs().max() <= 1e-12


def test_a_similar_trajectory_and_windows_that_follow_the_advance():
    kept = sampler(num_steps=20, window_size=8).sample(2, seed=1, keep_trajectory=True)
    options = {"num_steps": 20, "window_size": 8, "adaptive_window": 1.5}
    with engine() as shared:
        asked = Request(num_samples=2, seed=1, x_trajectory=kept.trajectory, **options)
        result = shared.submit(asked).result(TIMEOUT)
        with pytest.raises(ValueError, match="x_trajectory must have shape"):
            shared.submit(Request(x_trajectory=kept.trajectory[:, 1:], **options))
    alone = sampler(max_rows=24, **options).sample(2, seed=1, x_trajectory=kept.trajectory)
    assert torch.equal(result.samples, alone.samples)
    assert result.stats.rounds == alone.stats.rounds < kept.stats.rounds


def test_cancelled_while_it_runs_and_while_it_waits():
    gate = Gate()
    with engine(gate, max_active=1) as shared:
        running = shared.submit(Request(num_steps=50, window_size=4))
        waiting = shared.submit(Request(num_steps=50, window_size=4))
        assert gate.was_called.wait(TIMEOUT)
        assert waiting.progress.state is RequestState.QUEUED
        running.cancel()
        waiting.cancel()
        gate.is_open.set()
        results = [handle.result(TIMEOUT) for handle in (running, waiting)]
    assert [result.stop_reasons for result in results] == [[StopReason.CANCELLED]] * 2
    assert torch.isfinite(results[0].samples).all()
    assert torch.isnan(results[1].samples).all()
    assert running.progress.state is waiting.progress.state is RequestState.CANCELLED
    assert shared.stats.num_cancelled == 2


def test_a_full_queue_says_so_and_takes_requests_again():
    gate = Gate()
    with engine(gate, max_active=1, max_queued=1) as shared:
        first = shared.submit(Request(num_steps=4))
        assert gate.was_called.wait(TIMEOUT)
        second = shared.submit(Request(num_steps=4))
        with pytest.raises(EngineFullError, match=r"1 requests wait already.*max_queued"):
            shared.submit(Request(num_steps=4))
        gate.is_open.set()
        first.result(TIMEOUT)
        second.result(TIMEOUT)
        assert shared.submit(Request(num_steps=4)).result(TIMEOUT).all_converged


def test_shutting_down():
    gate = Gate()
    shared = engine(gate)
    handles = [shared.submit(Request(num_steps=30)) for _ in range(3)]
    assert gate.was_called.wait(TIMEOUT)
    with pytest.raises(TimeoutError, match=r"still run after 0.01 s; shutdown\(drain=False\)"):
        shared.shutdown(timeout=0.01)
    with pytest.raises(RuntimeError, match="was shut down and takes no more requests"):
        shared.submit(Request())
    gate.is_open.set()
    shared.shutdown(timeout=TIMEOUT)
    # drained
    assert all(handle.result(0).all_converged for handle in handles)


def test_an_error_on_the_way_out_does_not_wait_for_the_samples():
    gate = Gate()
    handles = []

    def use():
        with engine(gate) as shared:
            handles.append(shared.submit(Request(num_steps=500)))
            assert gate.was_called.wait(TIMEOUT)
            gate.is_open.set()
            raise KeyError

    with pytest.raises(KeyError):
        use()
    assert handles[0].result(0).stop_reasons == [StopReason.CANCELLED]


def test_an_error_of_the_model_ends_the_request_and_not_the_engine():
    def picky(x, t, shift=None):
        if shift is not None and (shift == 7).any():
            raise ValueError("no shift of 7, please")
        return model(x, t, shift)

    with engine(picky) as shared:
        bad = shared.submit(Request(num_steps=9, cond={"shift": torch.tensor([7.0])}))
        good = shared.submit(Request(num_steps=9, cond={"shift": torch.tensor([1.0])}))
        with pytest.raises(ValueError, match="no shift of 7"):
            bad.result(TIMEOUT)
        assert good.result(TIMEOUT).all_converged
        assert bad.progress.state is RequestState.FAILED
        assert shared.submit(Request(num_steps=9)).result(TIMEOUT).all_converged


def test_a_thread_that_dies_leaves_nobody_waiting(caplog):
    class Dying:
        def __call__(self, x, t, **cond):
            raise SystemExit

    shared = engine(Dying())
    handle = shared.submit(Request(num_steps=3))
    with pytest.raises(RuntimeError, match="the engine stopped because of an error"):
        handle.result(TIMEOUT)
    shared.shutdown(timeout=TIMEOUT)
    assert "the engine's thread stopped" in caplog.text
    with pytest.raises(RuntimeError, match="was shut down"):
        shared.submit(Request())


def test_many_threads_submit_at_once():
    results = {}

    def user(number, shared):
        asked = Request(num_steps=5 + number % 3, seed=number, window_size=4)
        results[number] = shared.submit(asked).result(TIMEOUT)

    with engine() as shared:
        threads = [threading.Thread(target=user, args=(n, shared)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
    assert len(results) == 16
    for number, result in results.items():
        alone = sampler(num_steps=5 + number % 3, window_size=4).sample(1, seed=number)
        assert torch.equal(result.samples, alone.samples)


def test_asyncio_with_previews():
    async def use(shared):
        handle = shared.submit(Request(num_steps=40, num_samples=2, window_size=4, tolerance=0))
        previews = [preview async for preview in handle.previews()]
        result = await handle
        # and by a second waiter, after the end
        assert (await handle) is result
        assert [p async for p in handle.previews()] == []
        return previews, result, handle

    gate = Gate()
    with engine(gate) as shared:
        opener = threading.Timer(0.1, gate.is_open.set)
        opener.start()
        previews, result, handle = asyncio.run(asyncio.wait_for(use(shared), TIMEOUT))
    assert 1 <= len(previews) <= result.stats.rounds
    assert all(preview.shape == (2, *SHAPE) for preview in previews)
    assert torch.isfinite(previews[-1]).all()
    assert not handle.is_watched


def test_a_task_that_gives_up_leaves_the_request_alone():
    async def use(shared, gate):
        handle = shared.submit(Request(num_steps=5))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(handle, 0.05)
        gate.is_open.set()
        return await asyncio.wait_for(handle, TIMEOUT)

    gate = Gate()
    with engine(gate) as shared:
        assert asyncio.run(use(shared, gate)).all_converged


def test_a_deadline_is_kept():
    def slow(x, t, **cond):
        time.sleep(0.02)
        return model(x, t, **cond)

    with engine(slow) as shared:
        result = shared.submit(Request(num_steps=1000, window_size=1, deadline_s=0.2)).result(
            TIMEOUT
        )
    assert result.stop_reasons == [StopReason.DEADLINE]
    assert 0.2 <= result.stats.wall_time_s < 5.0


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"priority": 0.0}, ValueError, "priority must be from 0.001 to 1000, got 0"),
        ({"priority": 1e-320}, ValueError, "priority must be from 0.001 to 1000"),
        ({"priority": 10**400}, ValueError, "priority must be finite"),
        ({"deadline_s": -1}, ValueError, "deadline_s must be > 0"),
        ({"window_size": "auto"}, TypeError, "window_size must be an integer, got str"),
        ({"num_samples": 0}, ValueError, "num_samples must be an integer >= 1"),
        ({"solver": "nope"}, ValueError, "solver"),
        ({"method": "nope"}, ValueError, "method must be one of"),
        ({"guidance_scale": 2.0}, ValueError, "guidance_scale needs cond"),
        ({"x_init": torch.zeros(1, 9)}, ValueError, "x_init must have shape"),
        ({"cond": {"shift": torch.zeros(3)}}, ValueError, "must have one row per sample"),
    ],
)
def test_bad_requests_are_refused_at_once(options, error, match):
    with engine() as shared:
        with pytest.raises(error, match=match):
            shared.submit(Request(**options))
        assert shared.stats.num_queued == shared.stats.num_failed == 0


def test_bad_engines_are_refused():
    with pytest.raises(ValueError, match="max_rows must be an integer >= 1, got 0"):
        engine(max_rows=0)
    with pytest.raises(ValueError, match="the engine schedules on the host"):
        engine(scheduler_backend="cuda")
    with pytest.raises(ValueError, match="prediction"):
        engine(prediction="nope")
    with engine() as shared, pytest.raises(TypeError, match=r"a ctd_engine.Request, got dict"):
        shared.submit({"num_steps": 4})
    with engine(max_rows=1) as shared, pytest.raises(ValueError, match="needs two model rows"):
        shared.submit(Request(cond={"shift": torch.zeros(1)}, guidance_scale=2.0))
