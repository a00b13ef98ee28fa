"""The benchmarks' registry: every case runs, and a provider with wrong numbers is found out."""

from __future__ import annotations

import pytest
import torch

import op_cases
from ctd_engine.ops._dispatch import triton_unavailable_reason
from op_cases import LARGE, SMALL, is_correct


@pytest.mark.parametrize("case", SMALL, ids=[case.name for case in SMALL])
def test_fused_is_correct(case):
    if triton_unavailable_reason() is not None:
        pytest.skip(f"no Triton: {triton_unavailable_reason()}")
    assert is_correct(case, "fused", "cuda" if torch.cuda.is_available() else "cpu")


def test_wrong_numbers_are_found_out(monkeypatch):
    case = SMALL[0]
    right = op_cases.provider_call(case, "eager")

    def wrong(inputs):
        x, x0, sums = right(inputs)
        x[0, 0, 0] += 0.01
        return x, x0, sums

    monkeypatch.setattr(op_cases, "provider_call", lambda case, provider: wrong)
    assert not is_correct(case, "eager", "cpu")


def test_large_cases_are_beyond_the_cache():
    """Of an H200, 50 MB; but for one, which asks how many small windows do."""
    assert all(case.num_bytes > 50e6 or "8x8" in case.name for case in LARGE)
    assert all(case.num_bytes < 8e9 for case in LARGE)
