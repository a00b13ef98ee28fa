"""`make gpu-check` without a GPU: one fault costs one row, and the report says what is missing."""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace

import pytest
import torch

import gpu_check
import gpu_samplers
from gpu_check import Budget
from gpu_report import markdown
from gpu_timing import Timing
from op_cases import LARGE, PROVIDERS, SMALL

NUMBERS = dict(
    median_us=10.0, p20_us=9.0, p80_us=12.0, host_us=70.0, is_captured=True, of_copy=0.875
)
SAMPLER = dict(
    problem="net",
    samples=1,
    sampler="parallel",
    rounds=46,
    evaluations_per_sample=1350.0,
    all_converged=False,
    rows_per_round=29.0,
    seconds=0.5,
    round_ms=10.0,
    model_ms=8.0,
    captured_model_ms=None,
    overhead=0.25,
    overhead_captured=None,
)
HEAD = ("problem", "samples", "sampler")


def report(**changes):
    """A small report; the fields of a real one."""
    made = {
        "gpu": "Card 1",
        "date": "2026-01-02",
        "commit": "abc",
        "is_dirty": False,
        "torch": "2",
        "triton": "3",
        "cuda": "13",
        "driver": "unknown",
        "tests": {"summary": "7 passed", "returncode": 0},
        "copy": {"gigabytes_per_s": 4000.0},
        "ops": [],
        "samplers": [],
        "models": {"net": 36_493_939},
        "unfinished": [],
        "seconds": 100.0,
    }
    return {**made, **changes}


def line_of(text, start):
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown_of_a_whole_report():
    slow = {**NUMBERS, "median_us": 45.0, "is_captured": False}
    row = {"case": "op", "megabytes": 1.25, "eager": slow, "compile": NUMBERS, "fused": NUMBERS}
    text = markdown(report(ops=[row], samplers=[SAMPLER]))
    assert line_of(text, "| op |") == [
        "op", "1.2", "45.0 *", "10.0", "10.0 (9.0, 12.0)", "88 %", "4.5", "1.0", "70"
    ]  # fmt: skip
    assert line_of(text, "| net |") == [
        "net", "1", "parallel", "46 (not converged)", "1350", "0.500", "10.000", "29", "8.000",
        "25 %", "-", "-",
    ]  # fmt: skip
    assert text.splitlines()[0] == "# Card 1, 2026-01-02, commit abc"
    assert "4000 GB/s" in text
    assert "36,493,939 parameters" in text
    assert "Not finished" not in text


def test_markdown_of_rows_without_numbers():
    row = {
        "case": "op",
        "megabytes": 1.0,
        "eager": {"failed": "ValueError: no\nsuch thing"},
        "compile": {"skipped": "no time left of 5 s"},
    }
    head = {key: SAMPLER[key] for key in HEAD}
    text = markdown(
        report(
            ops=[row],
            samplers=[{**head, "failed": "ValueError: no such thing"}],
            copy={"failed": "OutOfMemoryError: full"},
            unfinished=["samplers"],
        )
    )
    cells = ["op", "1.0", "failed [2]", "skipped [3]", "not reached", "-", "-", "-", "-"]
    assert line_of(text, "| op |") == cells
    # one width per table, or the row is not part of it
    assert len(line_of(text, "| net |")) == len(line_of(text, "| model |"))
    assert "[1] failed: OutOfMemoryError: full" in text
    # equal reasons are told once
    assert text.count("[2] failed: ValueError: no such thing") == 1
    assert "[3] skipped: no time left of 5 s" in text
    assert "Not finished: samplers." in text


@pytest.mark.parametrize(
    "is_dirty, words",
    [(True, "with changes that are not committed"), (None, "state of the tree unknown")],
)
def test_markdown_says_whether_the_tree_was_dirty(is_dirty, words):
    assert words in markdown(report(is_dirty=is_dirty)).splitlines()[0]
    assert words not in markdown(report())


def test_without_a_gpu_nothing_is_measured(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--out", str(tmp_path)]) == 2
    assert "needs a CUDA device and torch finds none" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def empty_ops():
    return [{"case": case.name, "megabytes": 1.0, "is_large": False} for case in SMALL + LARGE]


@pytest.fixture
def no_kernels(monkeypatch):
    """Operations that are right and take no time."""
    monkeypatch.setattr(gpu_check, "provider_call", lambda case, provider: (case, provider))
    monkeypatch.setattr(gpu_check, "is_correct", lambda case, call, device: True)
    timing = Timing(10.0, 9.0, 12.0, 70.0, True)
    monkeypatch.setattr(gpu_check, "measure", lambda case, call: timing)


def test_a_row_that_raises_leaves_the_others(monkeypatch, no_kernels):
    timing = Timing(10.0, 9.0, 12.0, 70.0, True)

    def measure(case, call):
        if call == (SMALL[0], "eager"):
            raise torch.cuda.OutOfMemoryError("no room")
        return timing

    monkeypatch.setattr(gpu_check, "measure", measure)
    monkeypatch.setattr(gpu_check, "is_correct", lambda case, call, _: call != (SMALL[1], "fused"))
    made, writes = report(ops=empty_ops()), []
    gpu_check.time_ops(made, PROVIDERS, Budget(60.0), lambda: writes.append(1))
    rows = {row["case"]: row for row in made["ops"]}
    assert rows[SMALL[0].name]["eager"] == {"failed": "OutOfMemoryError: no room"}
    assert rows[SMALL[1].name]["fused"] == {"failed": "wrong numbers"}
    entries = [row[provider] for row in made["ops"] for provider in PROVIDERS]
    assert sum("median_us" in entry for entry in entries) == len(entries) - 2 == len(writes) - 2
    speed = SMALL[0].num_bytes / 10.0 / 1e3
    assert rows[SMALL[0].name]["fused"]["of_copy"] == pytest.approx(speed / 4000.0)
    assert gpu_check.has_failed(made)
    assert "wrong numbers" in markdown(made)


def test_without_time_left_rows_are_skipped(no_kernels):
    made = report(ops=empty_ops())
    gpu_check.time_ops(made, PROVIDERS, Budget(0.0), lambda: None)
    entries = [row[provider] for row in made["ops"] for provider in PROVIDERS]
    assert all(entry == {"skipped": "no time left of 0 s"} for entry in entries)
    assert not gpu_check.has_failed(made)


def test_a_row_that_takes_too_long_is_ended():
    begin = time.monotonic()
    assert Budget(60.0).row(lambda: time.sleep(20), most=1.1) == {"skipped": "not done after 1 s"}
    assert time.monotonic() - begin < 10.0
    assert Budget(60.0).row(lambda: {"a": 1}, most=1.1) == {"a": 1}


def test_a_missing_program_is_no_answer():
    assert gpu_check.ask("no-such-program-anywhere") is None
    assert gpu_check.ask(sys.executable, "-c", "raise SystemExit(1)") is None
    assert gpu_check.ask(sys.executable, "-c", "print('yes')") == "yes"


def test_a_new_report_without_driver_or_git(monkeypatch):
    pytest.importorskip("triton")
    card = SimpleNamespace(name="Card 1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(gpu_check, "ask", lambda *command: None)
    made = gpu_check.new_report(None)
    assert (made["commit"], made["is_dirty"], made["driver"]) == ("unknown", None, "unknown")
    # nothing has run yet: every cell says so, and none of it is a success
    assert "not reached" in markdown(made)
    assert gpu_check.has_failed(made)
    answers = {"status": " M a.py", "rev-parse": "abc"}
    monkeypatch.setattr(gpu_check, "ask", lambda *command: answers.get(command[1]))
    assert gpu_check.new_report(None)["is_dirty"] is True
    assert gpu_check.new_report("named")["commit"] == "named"
    assert gpu_check.new_report("named")["is_dirty"] is None
    answers["status"] = ""
    assert gpu_check.new_report(None)["is_dirty"] is False


def test_tests_that_hang_are_ended(monkeypatch, tmp_path):
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\necho test_a passed\nsleep 60\n")
    hanging.chmod(0o755)
    monkeypatch.setattr(gpu_check.sys, "executable", str(hanging))
    done = gpu_check.run_tests(1.0)
    assert done["returncode"] is None
    assert done["summary"] == "not finished after 1 s; the last line was: test_a passed"


def test_the_report_is_written_as_it_goes(monkeypatch, tmp_path, no_kernels):
    """The whole command, with the CPU in the GPU's place and a model that fails."""

    def broken():
        raise ValueError("no such model")

    problem = gpu_samplers.digits(2, "cpu", num_steps=12)
    numbers = {key: value for key, value in SAMPLER.items() if key not in HEAD}
    monkeypatch.setattr(gpu_samplers, "time_one", lambda *_: numbers)
    made = report(ops=empty_ops(), unfinished=["tests", "fused and eager", "samplers", "compiled"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(gpu_check, "new_report", lambda commit: made)
    monkeypatch.setattr(gpu_check, "run_tests", lambda seconds: made["tests"])
    monkeypatch.setattr(gpu_check, "copy_bandwidth", lambda: 4000.0)
    monkeypatch.setattr(
        gpu_samplers,
        "problems",
        lambda: [gpu_samplers.partial(broken), gpu_samplers.partial(lambda: problem)],
    )
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    written = json.loads((tmp_path / "card-1" / "2026-01-02-abc.json").read_text())
    assert written["unfinished"] == []
    first, *others = written["samplers"]
    assert first["failed"] == "ValueError: no such model"
    assert len(others) == 4
    assert all("round_ms" in row for row in others)
    assert written["models"]["demo, 8x8"] == problem.num_parameters
    text = (tmp_path / "card-1" / "2026-01-02-abc.md").read_text()
    assert text == markdown(written)
