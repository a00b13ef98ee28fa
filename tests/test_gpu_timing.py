"""Timing on a GPU, with the CPU in the GPU's place: what is compared, and what is inside a time."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import gpu_samplers
import gpu_timing


@dataclass
class Replayed:
    """A CUDA graph of the CPU."""

    call: object

    def replay(self):
        self.call()


@pytest.fixture
def problem(monkeypatch):
    """The demo's network on the CPU, where a captured call is the call."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(gpu_samplers, "capture", Replayed)
    return gpu_samplers.digits(2, "cpu", num_steps=12)


def test_every_sampler_has_its_row(problem):
    rows = {
        name: gpu_samplers.time_one(problem, make, further)
        for name, make, further in gpu_samplers.samplers(problem)
    }
    assert list(rows) == [*gpu_samplers.SAMPLERS, "parallel, window 32", "parallel, window auto"]
    for row in rows.values():
        assert row["all_converged"]
        assert row["round_ms"] == pytest.approx(1e3 * row["seconds"] / row["rounds"])
        assert row["overhead"] == pytest.approx(row["round_ms"] / row["model_ms"] - 1)
    for name in gpu_samplers.SAMPLERS:
        assert rows[name]["rounds"] == 12
        assert rows[name]["rows_per_round"] == 2
    assert rows["parallel, window 32"]["rounds"] < 12


def test_a_captured_model_samples_the_same(problem):
    (_, plain, given), (_, captured, _), *_ = gpu_samplers.samplers(problem)
    with torch.inference_mode():
        samples = [
            make().sample(2, seed=3, cond=problem.cond(2), **given).samples
            for make in (plain, captured)
        ]
    assert torch.equal(*samples)


def test_a_model_that_cannot_be_captured_has_no_such_time(problem, monkeypatch):
    monkeypatch.setattr(gpu_samplers, "capture", lambda call: None)
    (_, plain, given), (_, captured, _), *_ = gpu_samplers.samplers(problem)
    row = gpu_samplers.time_one(problem, plain, given)
    assert row["captured_model_ms"] is row["overhead_captured"] is None
    with pytest.raises(RuntimeError, match="cannot be captured at 2 rows"):
        captured()


def test_the_unet_has_36_million_parameters():
    with torch.device("meta"):
        model = gpu_samplers.SmallUNet(shape=(3, 32, 32), width=gpu_samplers.UNET_WIDTH)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(36e6, rel=0.02)


class FakeEvent:
    """An event whose time is the number of calls and flushes before it."""

    log: list = []  # noqa: RUF012

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = len(FakeEvent.log)

    def elapsed_time(self, other):
        return float(other.at - self.at)


@pytest.mark.parametrize("host_us, flushes", [(0.0, 1), (100.0, 2), (1e9, gpu_timing.MAX_FLUSHES)])
def test_flushes_outlast_the_launches(monkeypatch, host_us, flushes):
    """A flush of 100 us before each call, as many as the host's time needs, none between events."""

    class Buffer:
        def zero_(self):
            FakeEvent.log.append("flush")

    monkeypatch.setattr(FakeEvent, "log", [])
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: Buffer())
    monkeypatch.setattr(gpu_timing, "_flush_time", lambda buffer: 100.0)
    times = gpu_timing.device_times(lambda: FakeEvent.log.append("call"), host_us, repeats=3)
    assert times == [1e3, 1e3, 1e3]
    assert FakeEvent.log == (["flush"] * flushes + ["call"]) * 3
