"""What the sampling operations refuse, and what they make of nothing."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from ctd_engine import _ext
from ctd_engine.ops._dispatch import triton_unavailable_reason, uses_interpreter
from ctd_engine.ops.gather_rows import gather_rows
from ctd_engine.ops.picard_update import picard_update_
from ctd_engine.ops.predict_guess import predict_guess_
from ctd_engine.ops.trajectory_error import trajectory_error
from ragged_problem import NUM_NODES, problem

DEVICE = "cpu" if uses_interpreter() else "cuda"
needs_triton = pytest.mark.skipif(
    triton_unavailable_reason() is not None, reason=f"no Triton: {triton_unavailable_reason()}"
)
needs_cpp = pytest.mark.skipif(
    DEVICE != "cpu" or _ext.unavailable_reason() is not None,
    reason=f"needs tensors on the CPU and the extension: {_ext.unavailable_reason()}",
)
BACKENDS = [
    pytest.param("triton", marks=needs_triton),
    pytest.param("cpp", marks=needs_cpp),
    "reference",
]
EMPTY = torch.zeros(0, dtype=torch.int64)
SEEDS = torch.arange(4)


def update_arguments(**changes):
    c, x, x0, windows, m, _ = problem(2, 6, torch.float32)
    arguments = {"x": x, "x0": x0, "m": m, "windows": windows, "coefficients": c, **changes}
    return picard_update_, arguments


def guess_arguments(**changes):
    c, x, x0, windows, _, _ = problem(2, 6, torch.float32)
    arguments = {
        "x": x,
        "x0": x0,
        "slot": windows.slot,
        "known": windows.start + 1,
        "count": torch.ones_like(windows.slot),
        "max_count": 3,
        "coefficients": c,
        **changes,
    }
    return predict_guess_, arguments


def gather_arguments(**changes):
    _, x, _, windows, _, _ = problem(2, 6, torch.float32)
    arguments = {
        "x": x,
        "row_slot": windows.row_slot,
        "row_node": windows.row_node,
        "input_scale": torch.ones(NUM_NODES),
        "model_time": torch.ones(NUM_NODES),
        "dtype": torch.float16,
        **changes,
    }
    return gather_rows, arguments


def error_arguments(**changes):
    _, _, _, windows, _, _ = problem(2, 6, torch.float32)
    arguments = {
        "partials": torch.zeros(4, 6, 1),
        "num_elements": 6,
        "threshold": torch.ones(NUM_NODES + 1),
        "start": windows.start,
        "length": windows.length,
        **changes,
    }
    return trajectory_error, arguments


ZEROS = torch.zeros
OTHER_LAYOUT = ZEROS(5, 6, 9).transpose(1, 2)
REJECTED = [
    (update_arguments, {"x": [0.0]}, TypeError, "x must be a tensor, got list"),
    (update_arguments, {"x": ZEROS(9, 6)}, ValueError, "x must have 3 dimensions [S, R, D]"),
    (update_arguments, {"x": ZEROS(5, 9, 6).half()}, TypeError, "got torch.float16"),
    (update_arguments, {"x": OTHER_LAYOUT}, ValueError, "x must have stride 1"),
    (update_arguments, {"x0": ZEROS(5, 9, 7)}, ValueError, "(5, 9, 6) = [S, R, D]"),
    (update_arguments, {"x0": ZEROS(5, 9, 6).double()}, TypeError, "x0 must be torch.float32"),
    (update_arguments, {"x0": OTHER_LAYOUT}, ValueError, "x0 must have stride 1"),
    (
        update_arguments,
        {"x": ZEROS(5, 7, 6), "x0": ZEROS(5, 7, 6)},
        ValueError,
        "x must hold at least 8 = max_length + K points per slot (its second dimension), got 7",
    ),
    (update_arguments, {"m": None}, TypeError, "m must be a tensor, got NoneType"),
    (update_arguments, {"m": ZEROS(16, 6)}, ValueError, "m must have shape (17, 6) = [rows, D]"),
    (update_arguments, {"m": ZEROS(17, 6).int()}, TypeError, "m must be of a floating-point type"),
    (
        update_arguments,
        {"m": ZEROS(17, 6, device="meta")},
        ValueError,
        "m must be on the device of the others, cpu, got meta",
    ),
    (update_arguments, {"m_null": ZEROS(17, 5)}, ValueError, "m_null must have shape (17, 6)"),
    (update_arguments, {"z": ZEROS(4, 6)}, ValueError, "z must have shape (17, 6) = [rows, D]"),
    (update_arguments, {"seeds": SEEDS[:3]}, ValueError, "seeds must have shape (4,) = [A]"),
    (update_arguments, {"seeds": SEEDS.int()}, TypeError, "seeds must be torch.int64"),
    (
        update_arguments,
        {"z": ZEROS(17, 6), "seeds": SEEDS},
        ValueError,
        "give either z (explicit noise) or seeds (from the counter), not both",
    ),
    (update_arguments, {"backend": "cuda"}, ValueError, "backend must be None or one of"),
    (guess_arguments, {"x0": ZEROS(5, 8, 6)}, ValueError, "(5, 9, 6) = [S, R, D]"),
    (guess_arguments, {"max_count": 8}, ValueError, "at least 10 = max_count + K points"),
    (guess_arguments, {"known": SEEDS[:3]}, ValueError, "known must have shape (4,) = [A]"),
    (guess_arguments, {"count": SEEDS.int()}, TypeError, "count must be torch.int64"),
    (guess_arguments, {"z": ZEROS(4, 2, 6)}, ValueError, "= [A, max_count, D], got (4, 2, 6)"),
    (guess_arguments, {"z": ZEROS(4, 3, 6), "seeds": SEEDS}, ValueError, "give either z"),
    (gather_arguments, {"x": OTHER_LAYOUT}, ValueError, "x must have stride 1"),
    (gather_arguments, {"row_node": SEEDS}, ValueError, "row_node must have shape (17,) = [rows]"),
    (gather_arguments, {"row_slot": SEEDS.int()}, TypeError, "row_slot must be torch.int64"),
    (gather_arguments, {"input_scale": ZEROS(2)}, ValueError, "input_scale must have shape (23,)"),
    (gather_arguments, {"model_time": SEEDS}, TypeError, "model_time must be of a floating-point"),
    (gather_arguments, {"dtype": torch.int32}, TypeError, "dtype must be a floating-point torch"),
    (error_arguments, {"partials": ZEROS(4, 6)}, ValueError, "3 dimensions [A, L, blocks]"),
    (error_arguments, {"threshold": ZEROS(24).double()}, TypeError, "threshold must be torch.fl"),
    (error_arguments, {"threshold": ZEROS(2, 12)}, ValueError, "= [N + 1], got (2, 12)"),
    (error_arguments, {"start": SEEDS[:3]}, ValueError, "start must have shape (4,) = [A]"),
    (error_arguments, {"length": SEEDS.int()}, TypeError, "length must be torch.int64"),
]


@pytest.mark.parametrize(("of", "changes", "error", "message"), REJECTED, ids=lambda p: str(p)[:30])
def test_rejects(of, changes, error, message):
    op, arguments = of(**changes)
    with pytest.raises(error, match=re.escape(message)):
        op(**arguments)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("A", ZEROS(NUM_NODES, 4), ValueError, "A must have shape [N, K] with K from 1 to 3"),
        ("B", ZEROS(NUM_NODES, 1), ValueError, "B must have shape (23, 2) = [N, K]"),
        ("G", ZEROS(NUM_NODES, 2).double(), TypeError, "G must be torch.float32"),
        ("C", ZEROS(2), ValueError, "C must have shape (23,) = [N]"),
        ("P", ZEROS(2), ValueError, "P must have shape (23,) = [N]"),
        ("Q", ZEROS(NUM_NODES).half(), TypeError, "Q must be torch.float32"),
    ],
)
def test_coefficients_reject(name, value, error, message):
    c = problem(2, 6, torch.float32)[0]
    with pytest.raises(error, match=re.escape(message)):
        replace(c, **{name: value})


@pytest.mark.parametrize("name", ["start", "length", "first_row"])
def test_windows_reject_entries(name):
    windows = problem(2, 6, torch.float32)[3]
    with pytest.raises(ValueError, match=re.escape(f"{name} must have shape (4,) = [A], got (3,)")):
        replace(windows, **{name: SEEDS[:3]})


@pytest.mark.parametrize("name", ["row_node", "row_entry", "row_offset"])
def test_windows_reject_rows(name):
    windows = problem(2, 6, torch.float32)[3]
    with pytest.raises(TypeError, match=f"{name} must be torch.int64, got torch.int32"):
        replace(windows, **{name: windows.row_node.int()})


def test_coefficients_of_another_type_than_the_states():
    c = problem(2, 6, torch.float64)[0]
    for of in (update_arguments, guess_arguments):
        op, arguments = of(coefficients=c)
        with pytest.raises(TypeError, match=r"coefficients.C must be torch.float32"):
            op(**arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("max_length", [0, 3])
def test_no_windows(max_length, backend):
    c, x, x0, windows, m, _ = (
        t.to(DEVICE) if isinstance(t, torch.Tensor) else t
        for t in problem(2, 6, torch.float32, device=DEVICE)
    )
    empty = EMPTY.to(DEVICE)
    windows = replace(
        windows,
        **{name: empty for name in vars(windows) if name != "max_length"},
        max_length=max_length,
    )
    before = x.clone(), x0.clone()
    for noise in ({"seeds": empty}, {"z": m[:0]}, {}):
        sums = picard_update_(x, x0, m[:0], windows, c, **noise, backend=backend)
        assert sums.shape[:2] == (0, max_length)
        accepted, finite = trajectory_error(
            sums, 6, torch.ones(NUM_NODES + 1, device=DEVICE), empty, empty, backend=backend
        )
        assert accepted.shape == finite.shape == (0,)
        assert accepted.dtype == finite.dtype == torch.int64
    for noise in ({"seeds": empty}, {"z": x.new_zeros(0, max_length, 6)}, {}):
        predict_guess_(x, x0, empty, empty, empty, max_length, c, **noise, backend=backend)
    for now, then in zip((x, x0), before, strict=True):
        assert torch.equal(now.nan_to_num(0.5), then.nan_to_num(0.5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows(backend):
    x, empty = torch.zeros(2, 3, 6, device=DEVICE), EMPTY.to(DEVICE)
    scale = torch.ones(NUM_NODES, device=DEVICE)
    rows, times = gather_rows(x, empty, empty, scale, scale, torch.float16, backend=backend)
    assert rows.shape == (0, 6)
    assert rows.dtype == torch.float16
    assert times.shape == (0,)
