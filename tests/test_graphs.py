"""When a call is run, recorded and replayed; the device's part is played by a stand-in."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager

import pytest
import torch

from ctd_engine._graphs import GraphedCalls, GraphSwitch, WaitFinder

CUDA = torch.device("cuda")
streams: list[str] = []


@pytest.fixture
def device(monkeypatch):
    """A CUDA device that records what is called while it captures, and what is replayed."""
    told = []

    class Graph:
        def replay(self):
            told.append(("replay", self.size))

    @contextmanager
    def capturing(graph, *, pool, stream, capture_error_mode):
        assert (pool, capture_error_mode) == ("pool", "thread_local")
        told.append("capture")
        yield
        graph.size = told.pop()
        told.pop()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the caller's")
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: streams.append(stream))
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
    streams.clear()
    return told


def test_run_then_look_then_record_then_replay(device):
    calls = GraphedCalls(device.append, CUDA, GraphSwitch(True))
    for size in (8, 8, 8, 8, 4, 8, 4):
        calls(size)
    # only the first size is looked at
    replayed = [("replay", 8), ("replay", 8), 4, ("replay", 8), ("replay", 4)]
    assert device == [8, 8, *replayed]
    assert streams == ["the caller's"] * 2


@pytest.mark.parametrize(("where", "is_enabled"), [(CUDA, False), (torch.device("cpu"), True)])
def test_never_recorded(device, where, is_enabled):
    calls = GraphedCalls(device.append, where, GraphSwitch(is_enabled))
    for _ in range(3):
        calls(8)
    assert device == [8, 8, 8]


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once(device, caplog):
    def call(size):
        if device and device[-1] == "capture":
            device.pop()
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        device.append(size)

    switch = GraphSwitch(True)
    with caplog.at_level(logging.WARNING, logger="ctd_engine"):
        for _ in range(2):
            calls = GraphedCalls(call, CUDA, switch)
            for size in (8, 8, 8, 4, 4):
                calls(size)
    assert device == [8, 8, 8, 4, 4] * 2
    assert streams == ["the caller's"]
    (record,) = caplog.records
    assert record.getMessage().endswith("operation not permitted when stream is capturing")


@pytest.mark.parametrize(
    ("wait", "name"),
    [
        (lambda x: float(x.sum()), "item|_local_scalar_dense"),
        (lambda x: bool((x > 0).all()), "item|is_nonzero|_local_scalar_dense"),
        (lambda x: x[x > 0], "index"),
        (lambda x: (x > 0).nonzero(), "nonzero"),
        (lambda x: torch.masked_select(x, x > 0), "masked_select"),
        (lambda x: x.unique(), "unique"),
        (lambda x: x.to("meta"), "to|_to_copy"),
    ],
    ids=["float", "bool", "mask", "nonzero", "select", "unique", "move"],
)
def test_waits_are_found_before_anything_is_recorded(device, caplog, wait, name):
    x = torch.ones(3)
    with torch.inference_mode(), WaitFinder() as finder:
        wait(x)
    assert re.search(name, finder.found)

    def call(size):
        device.append(size)
        wait(x)

    calls = GraphedCalls(call, CUDA, GraphSwitch(True))
    with caplog.at_level(logging.WARNING, logger="ctd_engine"):
        for _ in range(4):
            calls(8)
    assert device == [8] * 4
    (record,) = caplog.records
    assert "which waits for the device" in record.getMessage()


def test_what_does_not_wait_is_not_found():
    x, index = torch.ones(3), torch.tensor([0, 2])
    with torch.inference_mode(), WaitFinder() as finder:
        torch.cat([x[index], x.to(torch.float64).float(), torch.arange(3) + x.clamp(min=0)])
        x.clone().copy_(x)
    assert finder.found is None
