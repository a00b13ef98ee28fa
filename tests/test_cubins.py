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
        "gather_kernel",
        "error_kernel",
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
            assert cubin["stack"] == cubin["local"] == cubin["spills"] == 0, cubin


@pytest.mark.slow
def test_aligned_rows_are_loaded_16_bytes_at_a_time(cubins):
    checked = 0
    for cubin in cubins:
        # a row of 64 elements leaves two for each thread of a warp
        elements = cubin["flags"].get("BLOCK_D", 0)
        full = elements * cubin["flags"].get("BLOCK_L", 1) >= 4 * 32 * cubin["num_warps"]
        if cubin["is_aligned"] and full and "*fp32" in cubin["types"]:
            assert cubin["has_16_byte_loads"], cubin
            checked += 1
    assert checked > 500
