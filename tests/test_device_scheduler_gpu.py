"""The scheduler's CUDA kernels against the host's functions: equal states, and never a wait."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from ctd_engine.scheduling.device import DeviceScheduler
from scheduler_problem import random_sizes

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu

CUDA_TOOLS = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"

# more slots and rows than a block has threads, under a budget that binds
LARGE = dict(
    num_samples=3000,
    num_nodes=40,
    window_size=9,
    max_rows=5000,
    num_slots=1500,
    first_length=1,
    max_rounds=30,
    window_ratio=512,
    first_window=5,
)


@contextmanager
def no_waiting():
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def random_outcomes(sizes, num_rounds, seed):
    """Accepted and finite counts [num_rounds, 2, S]; what is out of range is clamped."""
    rng = np.random.default_rng(seed)
    shape = (num_rounds, 2, sizes["num_slots"])
    values = rng.integers(-1, sizes["window_size"] + 1, size=shape, endpoint=True)
    is_all_finite = rng.random((num_rounds, sizes["num_slots"])) < 0.9
    values[:, 1][is_all_finite] = sizes["window_size"]
    return torch.from_numpy(values)


def history(scheduler, outcomes):
    """State and rows after the beginning and after every step."""
    scheduler.begin()
    told = [(scheduler.state.clone(), scheduler.rows.clone())]
    for accepted, finite in outcomes:
        scheduler.step(accepted, finite)
        told.append((scheduler.state.clone(), scheduler.rows.clone()))
    return told


def assert_same_history(on_gpu, on_host):
    for turn, (ours, theirs) in enumerate(zip(on_gpu, on_host, strict=True)):
        for name, tensor, expected in zip(("state", "rows"), ours, theirs, strict=True):
            assert tensor.cpu().tolist() == expected.tolist(), (turn, name)


@pytest.mark.parametrize("batch", range(4))
def test_decides_as_the_host_without_a_wait(batch):
    for seed in range(batch * 50, (batch + 1) * 50):
        sizes = random_sizes(np.random.default_rng(seed))
        outcomes = random_outcomes(sizes, 30, seed)
        on_host = history(DeviceScheduler("cpu", **sizes), outcomes)
        outcomes = outcomes.cuda()
        with no_waiting():
            on_gpu = history(DeviceScheduler("cuda", **sizes), outcomes)
        assert_same_history(on_gpu, on_host)


@pytest.mark.parametrize("changes", [{}, {"max_rows": 1500}, {"num_slots": 513}], ids=str)
@pytest.mark.parametrize("lockstep", [False, True])
def test_more_slots_than_threads(changes, lockstep):
    sizes = {**LARGE, **changes, "lockstep": lockstep}
    if lockstep:
        sizes.update(num_samples=sizes["num_slots"], max_rows=9 * sizes["num_slots"])
    outcomes = random_outcomes(sizes, 40, 1)
    on_host = history(DeviceScheduler("cpu", **sizes), outcomes)
    outcomes = outcomes.cuda()
    with no_waiting():
        on_gpu = history(DeviceScheduler("cuda", **sizes), outcomes)
    assert_same_history(on_gpu, on_host)


def test_a_captured_step_replays():
    outcomes = random_outcomes(LARGE, 20, 2)
    on_host = history(DeviceScheduler("cpu", **LARGE), outcomes)
    outcomes = outcomes.cuda()
    scheduler = DeviceScheduler("cuda", **LARGE)
    scheduler.begin()
    accepted, finite = torch.zeros_like(outcomes[0, 0]), torch.zeros_like(outcomes[0, 0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scheduler.step(accepted, finite)
    told = [(scheduler.state.clone(), scheduler.rows.clone())]
    with no_waiting():
        for values in outcomes:
            accepted.copy_(values[0])
            finite.copy_(values[1])
            graph.replay()
            told.append((scheduler.state.clone(), scheduler.rows.clone()))
    assert_same_history(told, on_host)


def test_two_schedulers_on_two_streams():
    sizes = [LARGE, {**LARGE, "window_size": 4, "first_window": 4}]
    outcomes = [random_outcomes(s, 30, seed) for seed, s in enumerate(sizes)]
    on_host = [
        history(DeviceScheduler("cpu", **s), o) for s, o in zip(sizes, outcomes, strict=True)
    ]
    outcomes = [o.cuda() for o in outcomes]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    on_gpu = []
    for s, o, stream in zip(sizes, outcomes, streams, strict=True):
        with no_waiting(), torch.cuda.stream(stream):
            on_gpu.append(history(DeviceScheduler("cuda", **s), o))
    torch.cuda.synchronize()
    for ours, theirs in zip(on_gpu, on_host, strict=True):
        assert_same_history(ours, theirs)


def test_a_pinned_copy_is_read_late():
    scheduler = DeviceScheduler("cuda", **LARGE)
    arrived = torch.cuda.Event()
    with no_waiting():
        scheduler.begin()
        pinned = torch.empty(scheduler.state.shape, dtype=torch.int64, pin_memory=True)
        pinned.copy_(scheduler.state, non_blocking=True)
        arrived.record()
    arrived.synchronize()
    snapshot = scheduler.read(pinned.numpy())
    assert (snapshot.num_active, snapshot.num_waiting, snapshot.num_rows) == (1500, 1500, 1500)


def test_step_rejects_tensors_of_another_device():
    scheduler = DeviceScheduler("cuda", **LARGE)
    scheduler.begin()
    values = torch.ones(LARGE["num_slots"], dtype=torch.int64)
    with pytest.raises(ValueError, match="accepted must be on cuda:0, got cpu"):
        scheduler.step(values, values.cuda())


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_sanitizer_finds_nothing(tool):
    """Random histories of small and of large schedules under NVIDIA's compute-sanitizer."""
    sanitizer = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:{CUDA_TOOLS}")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    code = (
        "from test_device_scheduler_gpu import LARGE, history, random_outcomes\n"
        "from ctd_engine.scheduling.device import DeviceScheduler\n"
        "small = dict(LARGE, num_samples=5, num_slots=3, max_rows=11)\n"
        "for sizes in (LARGE, small, dict(small, window_ratio=0)):\n"
        "    history(DeviceScheduler('cuda', **sizes), random_outcomes(sizes, 20, 0).to('cuda'))\n"
    )
    done = subprocess.run(
        [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
        # in torch's cached blocks an address too far is still inside
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "0 errors" in done.stdout or "0 hazards" in done.stdout, done.stdout[-3000:]
