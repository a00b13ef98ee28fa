"""Every benchmark runs, once and small; `ctd-engine bench` tells and compares what it measured.

The rounds have tests of their own: test_bench_rounds.py, test_digits_rounds.py.
"""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

import bench_ops
import bench_samplers
import test_auto_window as auto_window
import test_engine_load as engine_load
import test_loss_variance as loss_variance
import test_scheduler_speed as scheduler_speed
from bench_losses import test_step as test_loss_step  # noqa: F401 (collected here)
from bench_noise import test_noise  # noqa: F401
from bench_samplers import test_sampler  # noqa: F401
from ctd_engine.cli import main
from ctd_engine.cli.bench import _summary, _table
from op_cases import provider_call
from test_scheduler_speed import test_decisions_per_second  # noqa: F401


@pytest.fixture
def benchmark(benchmark):
    """One run, no times, as with --benchmark-disable."""
    benchmark.disabled = True
    return benchmark


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(bench_samplers, "NUM_STEPS", 30)
    monkeypatch.setattr(bench_samplers.sampler_of, "__defaults__", (30,))
    monkeypatch.setattr(scheduler_speed, "NUM_ROUNDS", 2)


@pytest.mark.parametrize("case", bench_ops.SMALL, ids=[case.name for case in bench_ops.SMALL])
def test_ops(benchmark, case):
    bench_ops.test_on_the_cpu(benchmark, case, "eager")
    assert benchmark.extra_info["num_bytes"] > 0


def test_a_compiled_op(benchmark):
    (case,) = (case for case in bench_ops.SMALL if case.name.startswith("gather_rows"))
    bench_ops.test_on_the_cpu(benchmark, case, "compile")


def test_an_op_with_wrong_numbers_gets_no_time(monkeypatch):
    def wrong(case, provider):
        call = provider_call(case, provider)
        return lambda inputs: tuple(torch.zeros_like(value) for value in call(inputs))

    monkeypatch.setattr(bench_ops, "provider_call", wrong)
    (case,) = (case for case in bench_ops.SMALL if case.name.startswith("gather_rows"))
    with pytest.raises(AssertionError, match="wrong numbers get no time"):
        bench_ops.test_on_the_cpu(None, case, "eager")


def test_windows_against_auto():
    name = next(iter(auto_window.PROBLEMS))
    times = auto_window.wall_times(auto_window.PROBLEMS[name](), (16, "auto", "sequential"), 0)
    # the first turn warms up, and only asks that all samples converge
    assert times == {16: [], "auto": [], "sequential": []}


def test_the_spread_of_the_loss(benchmark):
    case = ("default", loss_variance.SPECTRA[0], 2, "p", 6.0)
    loss_variance.test_loss_variance(benchmark, False, *case)
    assert set(benchmark.extra_info["mean"]) == set(loss_variance.FORMS)


def test_overhead_beside_diffusers(monkeypatch):
    pytest.importorskip("diffusers")
    import test_diffusers_overhead as overhead

    monkeypatch.setattr(overhead, "STEPS", 12)
    monkeypatch.setattr(overhead, "TURNS", 1)
    with pytest.warns(FutureWarning):
        medians = overhead.overheads(8, 4)
    assert 0 < medians["ours"] < 1
    assert 0 < medians["theirs"] < 1


def test_a_mixed_load():
    numbers = engine_load.measure(count=5, within=0.1)
    assert set(numbers) == set(engine_load.SERVERS)
    assert all(value > 0 for row in numbers.values() for value in row.values())


def bench(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def test_command_writes_and_compares(tmp_path, monkeypatch):
    # the command's own pytest is nobody's worker
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    out = tmp_path / "new.json"
    chosen = ("benchmarks/bench_noise.py", "-k", "torch.randn", "-p", "no:cacheprovider")
    result = bench("--out", out, "--json", *chosen)
    assert result.exit_code == 0, result.output
    values = json.loads(out.read_text())
    assert json.loads(result.stdout) == values
    assert values["versions"]["torch"]
    assert values["machine"]["cores"] >= 1
    assert len(values["benchmarks"]) == 2
    name, entry = next(iter(values["benchmarks"].items()))
    assert name == "benchmarks/bench_noise.py::test_noise[torch.randn-32-16384]"
    assert entry["median_s"] > 0
    assert entry["elements_per_s"] == pytest.approx(32 * 16384 / entry["median_s"])


def test_table_has_ratios():
    report = {
        "machine_info": {
            "cpu": {"brand_raw": "a cpu", "count": 2},
            "machine": "x86",
            "system": "Linux",
            "release": "6",
        },
        "commit_info": {"id": "abc", "dirty": False},
        "benchmarks": [
            {
                "fullname": f"benchmarks/a.py::{name}",
                "stats": {"median": median, "iqr": 0.0, "rounds": 3},
                "extra_info": {},
            }
            for name, median in (("old", 0.003), ("fresh", 0.5))
        ],
    }
    old = {"benchmarks/a.py::old": 0.002, "benchmarks/a.py::gone": 1.0}
    rows = [line.split() for line in _table(_summary(report), old).splitlines()]
    assert ["a.py::old", "3.000", "ms", "3", "1.50"] in rows
    assert ["a.py::fresh", "500.000", "ms", "3", "new"] in rows
    assert ["not", "run", "this", "time:", "benchmarks/a.py::gone"] in rows
    assert ["commit", "abc"] in rows


def test_command_rejects(tmp_path):
    other = tmp_path / "other.json"
    other.write_text('{"benchmarks": [1]}')
    for arguments, match in (
        (("--compare", other), "must be a file that `ctd-engine bench --out` wrote"),
        (("--compare", tmp_path / "none.json"), "must be a file that"),
        (("--out", tmp_path / "no" / "x.json"), "is not there; make it first"),
        (("-k", "nothing_like_it", "benchmarks/bench_noise.py"), "measured nothing"),
    ):
        result = bench(*arguments)
        assert result.exit_code == 2
        assert match in result.stderr
