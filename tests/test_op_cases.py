"""The benchmarks' registry: every case runs, and a provider with wrong numbers is found out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from ctd_engine import _ext, ops
from ctd_engine.ops._dispatch import triton_unavailable_reason
from op_cases import L2_BYTES, LARGE, SMALL, OpCase, is_correct, provider_call
from op_inputs import NODES, make_windows

CASES = SMALL + LARGE
OPS = Path(ops.__file__).parent


@pytest.mark.parametrize("case", SMALL, ids=[case.name for case in SMALL])
def test_fused_is_correct(case):
    if triton_unavailable_reason() is not None:
        pytest.skip(f"no Triton: {triton_unavailable_reason()}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert is_correct(case, provider_call(case, "fused"), device)


@pytest.mark.skipif(
    _ext.unavailable_reason() is not None, reason=f"no extension: {_ext.unavailable_reason()}"
)
@pytest.mark.parametrize("case", [c for c in SMALL if c.has_cpp], ids=lambda case: case.name)
def test_cpp_is_correct(case):
    assert is_correct(case, provider_call(case, "cpp"), "cpu")


def test_every_operation_has_a_case():
    folders = {path.parent.name for path in OPS.glob("*/__init__.py")}
    # they move what is kept or has ended; a round does its work without them
    bookkeeping = {"record_points", "turn_over"}
    for cases in (SMALL, LARGE):
        named = {case.name.partition(" ")[0] for case in cases}
        # the sums of a round's error stay in the cache at any size
        assert folders - bookkeeping - named <= ({"trajectory_error"} if cases is LARGE else set())


def test_wrong_numbers_are_found_out():
    case = SMALL[0]
    right = provider_call(case, "eager")

    def wrong(inputs):
        sums = right(inputs)
        inputs["x"][0, 0, 0] += 0.01
        return sums

    assert is_correct(case, right, "cpu")
    assert not is_correct(case, wrong, "cpu")


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_case_runs_with_its_own_indices(case):
    """Eight elements each: the reference refuses an index that is not in its table."""
    inputs = case.make("cpu", 0, num_elements=8)
    outputs = case.outputs(inputs, provider_call(case, "eager")(inputs))
    assert all(bool(torch.isfinite(out).all()) for out in outputs)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_nodes_lie_inside_the_tables(case):
    inputs = case.make("cpu", 0, num_elements=8)
    if "windows" in inputs:
        windows = inputs["windows"]
        nodes, steps = windows.row_node, len(inputs["coefficients"].C)
    elif "row_node" in inputs:
        nodes, steps = inputs["row_node"], len(inputs["model_time"])
    elif "known" in inputs:
        # the last step that is taken leaves node known + count - 1
        nodes, steps = inputs["known"] + inputs["count"] - 1, len(inputs["coefficients"].C)
    elif "threshold" in inputs:
        nodes, steps = inputs["start"] + inputs["length"], len(inputs["threshold"])
    else:
        assert set(inputs) == {"eps", "out_alpha", "out_beta", "weight", "b", "y"}
        return
    assert int(nodes.min()) >= 0
    assert int(nodes.max()) < steps


@pytest.mark.parametrize(("num_windows", "length"), [(1, 1), (59, 32), (512, 32), (4096, 999)])
def test_any_number_of_windows_fits(num_windows, length):
    windows = make_windows(num_windows, length, "cpu")
    assert len(windows.row_node) == num_windows * length
    assert int(windows.row_node.min()) >= 0
    assert int((windows.start + windows.length).max()) <= NODES


def test_large_cases_are_beyond_the_cache():
    assert all(L2_BYTES < case.num_bytes < 8e9 for case in LARGE)


@pytest.mark.parametrize(
    "name, by_hand",
    [
        # per window: a state and an x0 read, 8 points written, 64 elements of 4 bytes
        # per row: x, x0, its change and m of 64 elements in 4 bytes, and one slope
        ("secant_slopes 16 windows of 32, 8x8", 16 * 32 * (4 * 64 * 4 + 4)),
        ("predict_guess 16 windows of 8, 8x8", 16 * (1 + 1 + 8) * 64 * 4),
        # per window: 32 sums of 128 blocks and 32 thresholds in 4 bytes; 4 numbers of 8
        ("trajectory_error 16 windows of 32, 4x128x128", 16 * (32 * 128 * 4 + 32 * 4 + 4 * 8)),
    ],
)
def test_bytes_by_hand(name, by_hand):
    (case,) = (case for case in CASES if case.name == name)
    assert case.num_bytes == by_hand


def _case_of(op):
    return OpCase(
        "of a test",
        op,
        lambda device, seed, size=3: {"x": torch.zeros(size)},
        12,
        call=lambda op, inputs: op(inputs["x"]),
    )


def test_a_case_is_compiled_for_its_shapes_alone(monkeypatch):
    """What was compiled for one case would make the next one dynamic."""
    shapes = []

    def backend(graph, inputs):
        shapes.append([tuple(value.shape) for value in inputs])
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    case = _case_of(lambda x, backend: (x + 1,))
    for size in (3, 4, 5):
        provider_call(case, "compile")(case.make("cpu", 0, size=size))
    # a dynamic graph has a symbol for its size
    assert shapes == [[(3,)], [(4,)], [(5,)]]
    assert all(type(size) is int for [[size]] in shapes)


def test_the_recompilation_limit_is_an_error():
    case = _case_of(lambda x, backend: (x + 1,))
    call = provider_call(case, "compile")
    with torch._dynamo.config.patch(recompile_limit=1):
        call(case.make("cpu", 0, size=3))
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            call(case.make("cpu", 0, size=4))


def test_a_break_in_the_graph_is_an_error():
    def op(x, backend):
        torch._dynamo.graph_break()
        return (x + 1,)

    call = provider_call(_case_of(op), "compile")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        call({"x": torch.zeros(3)})
