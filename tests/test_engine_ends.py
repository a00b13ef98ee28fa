"""Ends of requests that have to come, and what they leave behind."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import traceback
import weakref

import pytest

from ctd_engine import StopReason
from ctd_engine._engine_core import EngineCore
from ctd_engine._handle import Handle, RequestState
from ctd_engine._rounds import Rounds
from test_engine_core import RAISES, checked, sampler


def test_requests_of_one_round_do_not_stop_the_clock():
    core = EngineCore(max_rows=4, max_active=1, max_queued=64)
    long, short = sampler(10, 4, max_rows=4), sampler(1, 1, max_rows=4)
    core.submit(checked(short, 1, 0), short._settings)
    waiting = core.submit(checked(long, 1, 1), long._settings)
    # nobody is active once a round is over, so that nobody's use of rows moves the clock
    for number in range(60):
        core.submit(checked(short, 1, 2 + number), short._settings)
        core.step()
    assert waiting.done() or waiting.progress.state is RequestState.RUNNING
    core.cancel_all()
    core.step()


def test_who_came_while_the_ranks_could_not_agree_gets_the_error():
    def lost(news):
        raise RuntimeError("another rank stopped")

    core = EngineCore(max_rows=8, max_active=1, max_queued=8, agree=lost)
    made = sampler(5, 4)
    handle = core.submit(checked(made, 1, 0), made._settings)
    with pytest.raises(RuntimeError, match="another rank stopped") as caught:
        core.step()
    core.abort(caught.value)
    with pytest.raises(RuntimeError, match="the engine stopped because of an error"):
        handle.result(0)
    assert not core.has_work


def test_who_came_while_the_ranks_agreed_is_cancelled_with_all():
    core = EngineCore(
        max_rows=8,
        max_active=1,
        max_queued=8,
        # another thread, in the middle of a step
        agree=lambda news: (core.cancel_all() if news.arrivals else None, news)[1],
    )
    made = sampler(50, 4)
    handle = core.submit(checked(made, 1, 0), made._settings)
    core.step()
    core.step()
    assert handle.result(0).stop_reasons == [StopReason.CANCELLED]


def test_a_failed_request_holds_nothing_of_the_round_it_failed_in():
    core = EngineCore(max_rows=8, max_active=2, max_queued=8)
    made = sampler(40, 4)
    fine, bad = checked(made, 1, 0), checked(made, 1, 1, RAISES)
    bad.denoiser.calls = fine.denoiser.calls
    handles = [core.submit(request, made._settings) for request in (fine, bad)]
    core.step()
    rounds = [weakref.ref(job._rounds) for job in core._active]
    assert len(rounds) == 1
    core.cancel_all()
    core.step()
    gc.collect()
    assert rounds[0]() is None
    error = handles[1].error()
    # where it happened is told all the same
    assert "in model" in "".join(traceback.format_exception(type(error), error, None))


def test_waiting_again_and_again_leaves_nothing_behind():
    async def wait(handle):
        for _ in range(50):
            assert not await handle.wait(0.0)
            assert not await handle.wait(0.001)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(handle, 0.001)
            async for preview in handle.previews(0.001):
                assert preview is None
                break

    handle = Handle(1)
    asyncio.run(wait(handle))
    assert handle._watchers == handle._future._done_callbacks == []


def test_a_preview_that_cannot_be_made_ends_nothing(monkeypatch, caplog):
    def estimates(rounds):
        raise MemoryError("no room for a preview")

    monkeypatch.setattr(Rounds, "estimates", estimates)
    monkeypatch.setattr(Handle, "is_watched", True)
    core = EngineCore(max_rows=8, max_active=1, max_queued=8)
    made = sampler(4, 4)
    handle = core.submit(checked(made, 1, 0), made._settings)
    while core.has_work:
        core.step()
    assert handle.result(0).all_converged
    assert "a preview was left out" in caplog.text


@pytest.mark.parametrize("last", ["", "give_up()"])
def test_a_program_that_ends_while_requests_run_ends_well(last):
    """Without a shutdown, and after one that it did not wait for."""
    code = """
import time
import torch
from ctd_engine import Engine, Request, schedules

def model(x, t):
    for _ in range(5):
        x = torch.tanh(x @ x)
    return x

engine = Engine(model, shape=(300, 300), schedule=schedules.linear_beta())
engine.submit(Request(num_steps=1000, window_size=1))
time.sleep(0.5)

def give_up():
    try:
        engine.shutdown(timeout=0.01)
    except TimeoutError:
        pass

"""
    command = [sys.executable, "-c", code + last]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
