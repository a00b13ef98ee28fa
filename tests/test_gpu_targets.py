"""The targets of `make gpu-check`, judged from a report."""

from __future__ import annotations

import copy

import pytest

from gpu_report import markdown
from gpu_samplers import SAMPLERS
from gpu_targets import verdicts
from op_cases import LARGE
from test_gpu_check import SAMPLER, report

GRAPHS = "DDPM-1000, one image, faster than sequential, CUDA graphs"


def timing(median_us, of_copy=None):
    return {
        "median_us": median_us,
        "p20_us": median_us,
        "p80_us": median_us,
        "host_us": 5.0,
        "is_captured": True,
        "of_copy": of_copy,
    }


def sampler(problem, name, seconds, overhead=0.04):
    return {
        **SAMPLER,
        "problem": problem,
        "sampler": name,
        "seconds": seconds,
        "overhead": overhead,
    }


def good_report():
    """Everything just good enough, from the names of the real registry."""
    rows = [
        {
            "case": case.name,
            "megabytes": 1.0,
            "is_large": True,
            "fused": timing(10.0, 0.85),
            "eager": timing(40.0),
            "compile": timing(15.0),
        }
        for case in LARGE
    ]
    plain, graphs = SAMPLERS
    samplers = [
        sampler("demo, 8x8", plain, 4.0),
        sampler("demo, 8x8", graphs, 2.0),
        sampler("demo, 8x8", "parallel, window 32", 0.5),
        sampler("demo, 8x8", "parallel, window auto", 0.6),
        sampler("U-Net, 32x32, random weights", "parallel, window 64", 3.0, overhead=0.05),
    ]
    return report(ops=rows, samplers=samplers)


def test_a_good_run_meets_every_target():
    judged = verdicts(good_report())
    assert len(judged) == 9
    assert all(verdict.is_met for verdict in judged)
    text = markdown(good_report())
    assert text.count(", met |") == 9
    assert f"| {GRAPHS} | at least 4.0x | 4.0x, met |" in text


@pytest.mark.parametrize(
    "spoil, missed",
    [
        (lambda r: r["ops"][0]["fused"].update(of_copy=0.84), "picard_update, share of copy"),
        (lambda r: r["ops"][0]["eager"].update(median_us=39.0), "picard_update, faster than eager"),
        (lambda r: r["ops"][0]["compile"].update(median_us=14.0), "picard_update, faster than com"),
        (lambda r: r["samplers"][2].update(seconds=0.55), GRAPHS),
        (lambda r: r["samplers"][-1].update(overhead=0.06), "time per round beyond"),
    ],
)
def test_one_figure_too_low_is_one_target_missed(spoil, missed):
    run = good_report()
    # the first case is a Picard update
    run["ops"].sort(key=lambda row: not row["case"].startswith("picard_update"))
    spoil(run)
    names = [verdict.name for verdict in verdicts(run) if not verdict.is_met]
    assert any(name.startswith(missed) for name in names)
    assert "MISSED" in markdown(run)
    # the images' own speed-up over eager falls with the parallel sampler's time
    assert len(names) == (2 if missed == GRAPHS else 1)


def test_what_was_not_measured_is_not_met():
    run = copy.deepcopy(good_report())
    del run["ops"][0]["fused"]["median_us"]
    run["ops"][0]["fused"] = {"failed": "wrong numbers"}
    run["samplers"] = [{**run["samplers"][0], "seconds": 1.0}]
    judged = {verdict.name: verdict for verdict in verdicts(run)}
    op = run["ops"][0]["case"].split()[0]
    assert all(
        verdict.seen is None and not verdict.is_met and verdict.words == "not measured"
        for name, verdict in judged.items()
        if name.startswith((op, "DDPM", "time"))
    )
    assert all(verdict.seen is None for verdict in verdicts(report()))
