"""The paper model of docs/scaling.md: what it must obey, and that the page shows what it prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scaling_model import GPUS, WORKLOADS, Machine, best, flux_flops, pays_up_to, table

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_the_page_shows_what_the_model_prints(workload):
    assert table(Machine(), workload) in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_limits(workload):
    points = [best(Machine(), workload, gpus) for gpus in GPUS]
    # with one GPU there is always the sequential sampler
    assert points[0].speedup >= 1.0
    for point in points:
        # no more than one rank's call per reach
        fastest = workload.num_nodes / (1 + (workload.num_nodes - 1) / workload.reach)
        ratio = workload.recorded_s(Machine(), workload.evaluations_per_row) / workload.call_s(
            Machine(), 1
        )
        assert point.speedup <= fastest * ratio * 1.001
        assert point.rounds >= 1 + (workload.num_nodes - 1) / workload.reach - 1e-9
    assert pays_up_to(points) in GPUS


def test_gather_costs():
    machine = Machine()
    assert machine.gather_s(1, 1e9) == 0.0
    # seven eighths of it over NVLink, seven hops within the node
    assert machine.gather_s(8, 450e9 * 8 / 7) == pytest.approx(1.0, rel=1e-4)
    # a slower link between nodes only shows between nodes
    slow = replace(machine, infiniband_bandwidth=1e9)
    assert slow.gather_s(8, 1e6) == machine.gather_s(8, 1e6)
    assert slow.gather_s(16, 1e6) > 3 * machine.gather_s(16, 1e6)


def test_flux_has_about_two_operations_per_parameter_and_token():
    """12 B parameters, of which a token of a block with two streams meets half."""
    assert flux_flops() / (2 * 12e9 * 4608) == pytest.approx(0.67, abs=0.02)
