"""The scheduler on tensors: the Python scheduler's decisions, on host threads and on a GPU."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from ctd_engine import _ext
from ctd_engine.scheduling import make_scheduler
from ctd_engine.scheduling.device import DeviceScheduler
from ctd_engine.scheduling.plan import CONVERGED, DIVERGED
from scheduler_problem import DEFAULTS, NEEDS_EXTENSION, random_sizes

pytestmark = NEEDS_EXTENSION
INT64 = np.iinfo(np.int64)


def random_outcome(rng, plan):
    """Advances and finite counts of one round, often whole or one, now and then nothing finite."""
    finite = plan.length.copy()
    cut = rng.random(len(finite)) < 0.2
    finite[cut] = rng.integers(0, finite[cut], endpoint=True)
    accepted = rng.integers(1, np.maximum(finite, 1), endpoint=True)
    accepted = np.where(rng.random(len(finite)) < 0.3, np.maximum(finite, 1), accepted)
    return np.where(rng.random(len(finite)) < 0.2, 1, accepted), finite


def in_slots(rng, plan, values, num_slots):
    """Values of active entries where their slots are, and garbage, which nobody may look at."""
    slots = rng.choice([INT64.min, -1, 0, 1, 7, INT64.max], size=num_slots)
    slots[plan.slot] = values
    return torch.from_numpy(slots)


def snapshot_of(scheduler):
    return scheduler.read(scheduler.state.cpu().numpy())


def assert_same_plan(scheduler, plan):
    """Columns, row lists and padding of a plan; None is a plan of nothing."""
    columns = {name: getattr(scheduler, name).numpy() for name in ("sample", "start", "length")}
    snapshot = snapshot_of(scheduler)
    num_rows = 0 if plan is None else len(plan.row_slot)
    assert snapshot.num_rows == num_rows
    assert scheduler.rows[:, num_rows:].count_nonzero() == 0
    if plan is None:
        assert (columns["sample"] == -1).all()
        assert (columns["length"] == 0).all()
        return
    is_active = np.isin(scheduler.slot.numpy(), plan.slot)
    assert (columns["sample"][~is_active] == -1).all()
    assert (columns["length"][~is_active] == 0).all()
    for name in ("sample", "start", "length", "known"):
        ours = getattr(scheduler, name).numpy()
        assert ours[is_active].tolist() == getattr(plan, name).tolist(), name
        assert ours.tolist() == getattr(snapshot, name).tolist(), name
    rows = np.bincount(plan.row_entry)
    first_row = np.cumsum(rows) - rows
    assert scheduler.first_row.numpy()[is_active].tolist() == first_row.tolist()
    for name in ("row_slot", "row_sample", "row_node", "row_offset"):
        rows = getattr(scheduler, name)[:num_rows].tolist()
        assert rows == getattr(plan, name).tolist(), name
    assert scheduler.row_entry.tolist() == scheduler.row_slot.tolist()


def assert_same_ends(scheduler, reference, ended, all_ended):
    snapshot = snapshot_of(scheduler)
    assert snapshot.ended == ended
    assert snapshot.finished == sorted(all_ended)
    by_slot = {end.slot: (end.sample, end.reason, end.known) for end in ended}
    columns = (scheduler.ended_sample, scheduler.ended_reason, scheduler.ended_known)
    for slot, told in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        assert told == by_slot.get(slot, (-1, -1, 0))
    counters = ("round", "num_active", "num_waiting", "num_finished")
    for name in counters:
        assert getattr(snapshot, name) == getattr(reference, name), name


def assert_same_admissions(scheduler, before):
    """A slot admitted a sample if it holds another one than before."""
    now = scheduler.sample.tolist()
    came = [a if a != b else -1 for a, b in zip(now, before, strict=True)]
    assert scheduler.admitted_sample.tolist() == came


def play(sizes, seed, num_threads):
    """One history of both, compared after every step."""
    rng = np.random.default_rng(seed)
    reference = make_scheduler(**sizes, backend="python")
    scheduler = DeviceScheduler("cpu", **sizes, num_threads=num_threads)
    scheduler.begin()
    all_ended, ended, before = [], [], [-1] * sizes["num_slots"]
    most_rows = sizes["max_rows"]
    while True:
        plan = reference.plan()
        assert_same_plan(scheduler, plan)
        snapshot = snapshot_of(scheduler)
        assert snapshot.num_rows <= most_rows
        most_rows = scheduler.most_rows_next(snapshot)
        assert_same_admissions(scheduler, before)
        assert_same_ends(scheduler, reference, ended, all_ended)
        if plan is None:
            return scheduler, rng
        outcome = random_outcome(rng, plan)
        ended = reference.step(*outcome)
        all_ended += ended
        before = scheduler.sample.tolist()
        for end in ended:
            before[end.slot] = -1
        scheduler.step(*(in_slots(rng, plan, v, sizes["num_slots"]) for v in outcome))


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize("batch", range(4))
def test_decides_as_the_python_scheduler(num_threads, batch):
    """Thousands of histories on one thread, hundreds with barriers between threads."""
    num_histories = 1000 if num_threads == 1 else 150
    for seed in range(batch * num_histories, (batch + 1) * num_histories):
        sizes = random_sizes(np.random.default_rng(seed))
        scheduler, rng = play(sizes, seed, num_threads)
        # what was enqueued ahead moves nothing once all is finished
        last, rows = scheduler.state.clone(), scheduler.rows.clone()
        garbage = torch.from_numpy(rng.integers(-5, 5, size=(2, sizes["num_slots"])))
        scheduler.step(garbage[0], garbage[1])
        assert torch.equal(scheduler.rows, rows)
        assert snapshot_of(scheduler).round == scheduler.read(last.numpy()).round
        assert snapshot_of(scheduler).ended == []
        assert snapshot_of(scheduler).finished == scheduler.read(last.numpy()).finished


@pytest.mark.parametrize("num_threads", [1, 2, 3, 4])
@pytest.mark.parametrize("num_slots", [1, 37, 100])
@pytest.mark.parametrize("lockstep", [False, True])
def test_slots_are_spread_over_threads(num_threads, num_slots, lockstep):
    num_samples = num_slots if lockstep else 3 * num_slots
    sizes = dict(num_samples=num_samples, num_nodes=9, window_size=5, num_slots=num_slots)
    max_rows = num_slots * (5 if lockstep else 2) + 3
    sizes.update(max_rows=max_rows, first_length=5, max_rounds=8, lockstep=lockstep)
    play({**sizes, "window_ratio": 400, "first_window": 4}, 7, num_threads)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_no_barrier_is_missing(tmp_path):
    """No thread reads what another one writes without a barrier between: the sanitizer's word."""
    here = Path(__file__).parent
    command = ["c++", "-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread"]
    command += [f"-I{here.parent / 'csrc'}", "-o", str(tmp_path / "race")]
    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() {}")
    if any(
        subprocess.run(attempt, capture_output=True, check=False).returncode != 0
        for attempt in ([*command, str(empty)], [str(tmp_path / "race")])
    ):
        pytest.skip("no thread sanitizer")
    subprocess.run([*command, str(here / "schedule_race.cpp")], check=True)
    done = subprocess.run(
        [str(tmp_path / "race")], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[:4000]


def test_a_new_beginning_forgets_everything():
    sizes = {**DEFAULTS, "num_samples": 5, "num_slots": 2, "max_rows": 7}
    scheduler = DeviceScheduler("cpu", **sizes)
    scheduler.begin()
    state, rows = scheduler.state.clone(), scheduler.rows.clone()
    for _ in range(4):
        scheduler.step(torch.tensor([1, 3]), torch.tensor([4, 3]))
    assert not torch.equal(scheduler.state, state)
    scheduler.begin()
    assert torch.equal(scheduler.state, state)
    assert torch.equal(scheduler.rows, rows)


def test_values_out_of_range_are_clamped():
    scheduler = DeviceScheduler("cpu", **DEFAULTS)
    scheduler.begin()
    scheduler.step(torch.tensor([-5, 99, INT64.max]), torch.tensor([INT64.max, 3, -1]))
    assert scheduler.start.tolist() == [1, 3, 0]
    assert scheduler.known.tolist() == [4, 3, 0]
    assert scheduler.ended_sample.tolist() == [-1, -1, 2]
    assert scheduler.ended_reason.tolist() == [-1, -1, DIVERGED]


def test_a_snapshot_is_data_of_its_own():
    scheduler = DeviceScheduler("cpu", **{**DEFAULTS, "window_size": 10, "first_length": 10})
    scheduler.begin()
    copy = scheduler.state.numpy().copy()
    snapshot = scheduler.read(copy)
    copy[:] = 7
    assert (snapshot.num_rows, snapshot.num_active, snapshot.num_waiting) == (30, 3, 0)
    assert snapshot.sample.tolist() == [0, 1, 2]
    assert snapshot.finished == snapshot.ended == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot.round = 3
    scheduler.step(torch.tensor([10, 1, 1]), torch.tensor([10, 10, 10]))
    assert snapshot_of(scheduler).ended == [(0, 0, CONVERGED, 1, 10, 10, 10)]
    assert snapshot.sample.tolist() == [0, 1, 2]


ONES = torch.ones(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("accepted", "finite", "error", "match"),
    [
        (ONES[:2], ONES, ValueError, r"accepted must have one entry per slot, shape \(3,\)"),
        (ONES, ONES[None], ValueError, r"finite must have one entry .* got \(1, 3\)"),
        (ONES.int(), ONES, ValueError, "accepted must be torch.int64, got torch.int32"),
        (ONES, ONES.double(), ValueError, "finite must be torch.int64, got torch.float64"),
        (ONES.repeat(2)[::2], ONES, ValueError, r"accepted must be contiguous, got stride \(2,\)"),
        (ONES.to("meta"), ONES, ValueError, "accepted must be on cpu, got meta"),
        (np.ones(3, np.int64), ONES, TypeError, "accepted must be a torch.Tensor, got ndarray"),
    ],
)
def test_step_rejects_and_nothing_moves(accepted, finite, error, match):
    scheduler = DeviceScheduler("cpu", **DEFAULTS)
    with pytest.raises(ValueError, match=r"call begin\(\) first"):
        scheduler.step(ONES, ONES)
    scheduler.begin()
    before = scheduler.state.clone()
    with pytest.raises(error, match=match):
        scheduler.step(accepted, finite)
    assert torch.equal(scheduler.state, before)


@pytest.mark.parametrize(
    ("device", "changes", "match"),
    [
        ("cpu", {"max_rows": 2}, "max_rows must be at least num_slots = 3"),
        ("cpu", {"window_ratio": 3}, "window_ratio must be 0, or from 256"),
        ("cpu", {"num_threads": 0}, "num_threads must be an integer >= 1"),
        ("cpu", {"num_threads": 65}, "num_threads must be at most 64, got 65"),
        ("meta", {}, "device must be cpu or cuda, got meta"),
    ],
)
def test_rejects(device, changes, match):
    with pytest.raises(ValueError, match=match):
        DeviceScheduler(device, **{**DEFAULTS, **changes})


def test_reads_only_its_own_snapshots():
    scheduler = DeviceScheduler("cpu", **DEFAULTS)
    for snapshot in (np.zeros(3, np.int64), scheduler.state.numpy().astype(np.int32)):
        with pytest.raises(ValueError, match="snapshot must be a copy of state, int64"):
            scheduler.read(snapshot)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_all_reasons_are_listed(monkeypatch):
    monkeypatch.setattr(_ext, "cuda_unavailable_reason", lambda: "there is no CUDA part")
    with pytest.raises(RuntimeError) as error:
        DeviceScheduler("cuda", **DEFAULTS)
    first, *reasons = str(error.value).splitlines()
    assert first == "the window scheduler cannot run on a CUDA device"
    assert reasons[0] == "    - there is no CUDA part"
    assert reasons[1].startswith("    - torch ")
