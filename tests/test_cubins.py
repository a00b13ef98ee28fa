"""Every kernel specialisation compiles for every architecture, without spills or local memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from ctd_engine.ops._dispatch import triton_unavailable_reason

ARCHITECTURES = {80, 90, 100}


@pytest.fixture(scope="module")
def cubins(tmp_path_factory):
    if triton_unavailable_reason() is not None:
        pytest.skip(f"no Triton: {triton_unavailable_reason()}")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "cubins.py")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_all_compile_without_spills(cubins, capsys):
    kernels = defaultdict(list)
    for cubin in cubins:
        kernels[cubin["kernel"]].append(cubin)
    assert set(kernels) == {
        "walk_kernel",
        "tile_kernel",
        "guess_kernel",
        "slopes_kernel",
        "gather_kernel",
        "error_kernel",
        "turn_over_kernel",
        "gap_fwd_kernel",
        "loss_fwd_kernel",
        "reduction_bwd_kernel",
    }
    with capsys.disabled():
        for name, those in kernels.items():
            registers = [c["registers"] for c in those]
            print(
                f"\n{name}: {len(those)} cubins, registers {min(registers)} to {max(registers)}, "
                f"shared memory up to {max(c['shared'] for c in those)} bytes",
                end="",
            )
    for name, those in kernels.items():
        assert {c["sm"] for c in those} == ARCHITECTURES, name
        for cubin in those:
            assert cubin["stack"] == cubin["local"] == 0, cubin


@pytest.mark.slow
def test_aligned_rows_are_loaded_as_widely_as_a_thread_can(cubins):
    """16 bytes at a time, or all that a thread has of an operand, for every operand of rows."""
    checked = 0
    for cubin in cubins:
        if cubin["is_aligned"]:
            for width, number in cubin["needed_loads"].items():
                assert cubin["made_loads"].get(width, 0) >= number, cubin
                checked += width == "16"
    assert checked > 300


@pytest.mark.slow
def test_the_walk_loads_and_stores_states_in_one_layout(cubins):
    """There is no barrier between its load and its store of the same point."""
    walks = [cubin for cubin in cubins if cubin["kernel"] == "walk_kernel"]
    assert {len(cubin["state_layouts"]) for cubin in walks} == {1}
