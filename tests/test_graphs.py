"""When a call is run, recorded and replayed; the device's part is played by a stand-in."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import pytest
import torch

from ctd_engine._graphs import GraphedCalls

CUDA = torch.device("cuda")


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
    return told


def test_run_then_record_then_replay(device):
    calls = GraphedCalls(device.append, CUDA, is_enabled=True)
    for size in (8, 8, 8, 4, 8, 4):
        calls(size)
    assert device == [8, ("replay", 8), ("replay", 8), 4, ("replay", 8), ("replay", 4)]


@pytest.mark.parametrize(("where", "is_enabled"), [(CUDA, False), (torch.device("cpu"), True)])
def test_never_recorded(device, where, is_enabled):
    calls = GraphedCalls(device.append, where, is_enabled)
    for _ in range(3):
        calls(8)
    assert device == [8, 8, 8]


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once(device, caplog):
    def call(size):
        if device and device[-1] == "capture":
            device.pop()
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        device.append(size)

    calls = GraphedCalls(call, CUDA, is_enabled=True)
    with caplog.at_level(logging.WARNING, logger="ctd_engine"):
        for size in (8, 8, 8, 4, 4):
            calls(size)
    assert device == [8, 8, 8, 4, 4]
    (record,) = caplog.records
    assert record.getMessage().endswith("operation not permitted when stream is capturing")
