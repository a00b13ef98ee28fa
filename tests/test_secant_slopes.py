"""Secant slopes and the update that takes them, against loops, inside buffers of NaN."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch

from ctd_engine import _ext
from ctd_engine.ops._dispatch import triton_unavailable_reason
from ctd_engine.ops._tuning import Blocks
from ctd_engine.ops.picard_update import picard_update_
from ctd_engine.ops.secant_slopes import secant_slopes
from ragged_problem import ENTRIES, NUM_SLOTS, RING, guarded, other_layout, problem

IS_GPU = torch.cuda.is_available()
# the kernels run where there is a GPU, else in the interpreter
needs_triton = [
    pytest.mark.skipif(
        triton_unavailable_reason() is not None, reason=f"no Triton: {triton_unavailable_reason()}"
    ),
    *([pytest.mark.gpu] if IS_GPU else []),
]
needs_cpp = pytest.mark.skipif(
    _ext.unavailable_reason() is not None, reason=f"no extension: {_ext.unavailable_reason()}"
)
BACKENDS = [
    "reference",
    pytest.param("cpp", marks=needs_cpp),
    pytest.param("triton", marks=needs_triton),
]
# the last node with a value before the guess: in the middle of three windows, before the last
KNOWN = [3, 9, 20, 5]
# node 7 has not moved, and node 18 was not finite
STILL, BROKEN = (0, 7), (4, 18)


def device_of(backend):
    return "cuda" if IS_GPU and backend in ("triton", "walk", "tile") else "cpu"


def given(order, num_elements, dtype, *, clip=None, device="cpu"):
    """Rings that hold numbers where rows may read, windows that know them, outputs and solver."""
    c, x, x0, windows, m, _ = problem(order, num_elements, dtype, clip=clip, device=device)
    # slopes inside of [0, 1] and beyond both ends
    c = replace(c, A=guarded(c.A.abs() / (2 * order)), B=guarded(0.4 * c.B))
    generator = torch.Generator().manual_seed(3)
    change = guarded(torch.full_like(x, math.nan))
    for slot, node in zip(windows.row_slot, windows.row_node % RING, strict=True):
        for ring in (x0, change):
            values = torch.randn(num_elements, generator=generator, dtype=torch.float64)
            ring[slot, node] = values.to(device, dtype)
    change[STILL[0], STILL[1] % RING] = 0.0
    x0[BROKEN[0], BROKEN[1] % RING, -1] = math.nan
    return c, x, x0, change, replace(windows, known=guarded(torch.tensor(KNOWN, device=device))), m


def by_hand(c, x, x0, change, w, m, m_null=None, scale=1.0):
    slopes = []
    for row, (slot, node, entry) in enumerate(
        zip(w.row_slot.tolist(), w.row_node.tolist(), w.row_entry.tolist(), strict=True)
    ):
        out = m[row].double()
        if m_null is not None:
            out = m_null[row].double() + scale * (out - m_null[row].double())
        now = c.P[node].double() * x[slot, node % RING].double() + c.Q[node].double() * out
        now = now if c.clip is None else now.clamp(-c.clip, c.clip)
        d = change[slot, node % RING].double()
        j = torch.dot(d, now - x0[slot, node % RING].double()) / torch.dot(d, d)
        slope = float(sum(c.A[node].double()) + j * sum(c.B[node].double()))
        has_pair = node < KNOWN[entry] and (slot, node) not in (STILL, BROKEN)
        slopes.append(min(max(slope, 0.0), 1.0) if has_pair else 1.0)
    return torch.tensor(slopes, dtype=torch.float64, device=x.device)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("num_elements", "clip"), [(1, None), (7, 0.5), (37, None), (1031, 0.5)])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_slopes_match_the_loop(order, num_elements, clip, dtype, backend):
    c, x, x0, change, w, m = given(order, num_elements, dtype, clip=clip, device=device_of(backend))
    slopes = secant_slopes(x, x0, change, m, w, c, backend=backend)
    want = by_hand(c, x, x0, change, w, m)
    assert ((want > 0) & (want < 1)).any()
    assert (want != 1).sum() >= 2
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(slopes.double(), want, rtol=0.0, atol=tolerance)
    # without `known` no row has a pair
    assert (secant_slopes(x, x0, change, m, replace(w, known=None), c, backend=backend) == 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_slopes_of_guided_outputs_in_any_layout(m_dtype, backend):
    """Rows and indices with elements apart; a column-major output; rings inside wider ones."""
    c, x, x0, change, w, m = given(2, 6, torch.float32, clip=0.8, device=device_of(backend))
    m = m.to(m_dtype)
    m_null = 0.5 * m + 0.25
    want = by_hand(c, x, x0, change, w, m, m_null, 2.5)

    def widened(ring, extra):
        wide = ring.new_full((*ring.shape[:2], ring.shape[2] + extra), math.nan)
        wide[..., : ring.shape[2]] = ring
        return wide[..., : ring.shape[2]]

    names = ("row_slot", "row_node", "row_entry", "known")
    w = replace(w, **{name: other_layout(getattr(w, name)) for name in names})
    slopes = secant_slopes(
        *(widened(ring, extra) for extra, ring in enumerate((x, x0, change), start=1)),
        m.T.contiguous().T,
        w,
        c,
        m_null=other_layout(m_null),
        guidance_scale=2.5,
        backend=backend,
    )
    torch.testing.assert_close(slopes.double(), want, rtol=0.0, atol=2e-4)


def run_update(how, order, dtype, slopes, change, seeds):
    """x, x0 and sums of squares of an update with slopes; "walk" and "tile" are Triton's kernels"""
    c, x, x0, w, m, _ = problem(order, 7, dtype, device=device_of(how))
    c = replace(c, G=torch.cat([c.G[:, :1], torch.zeros_like(c.G[:, 1:])], dim=1))
    options = dict(seeds=seeds, slopes=slopes, change=change)
    if how in ("walk", "tile"):
        from ctd_engine.ops.picard_update.kernel import launch

        blocks = Blocks(8 if how == "tile" else 0, 4, 1)
        sums = launch(
            x, x0, m, w, c, z=None, m_null=None, guidance_scale=1.0, blocks=blocks, **options
        )
    else:
        sums = picard_update_(x, x0, m, w, c, **options, backend=how)
    return x, x0, sums.sum(2)[torch.arange(w.max_length, device=x.device) < w.length[:, None]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize(
    "how",
    [
        "reference",
        pytest.param("cpp", marks=needs_cpp),
        pytest.param("walk", marks=needs_triton),
        pytest.param("tile", marks=needs_triton),
    ],
)
def test_update_with_slopes_by_row_and_its_changes(how, order, dtype):
    """No two windows share a node: a table with the slopes at the rows' nodes says the same."""
    device = device_of(how)
    seeds = torch.tensor([5, -7, 2**62, 0], device=device)
    c, before, x0, w, m, _ = problem(order, 7, dtype, device=device)
    generator = torch.Generator().manual_seed(4)
    slopes = guarded(torch.rand(len(w.row_slot), generator=generator).to(device, dtype))
    change = guarded(torch.full_like(before, math.nan))
    got = run_update(how, order, dtype, slopes, change, seeds)
    g = torch.zeros_like(c.G)
    g[w.row_node, 0] = slopes
    x = before.clone()
    sums = picard_update_(x, x0, m, w, replace(c, G=g), seeds=seeds, backend="reference").sum(2)
    want = x, x0, sums[torch.arange(w.max_length, device=device) < w.length[:, None]]
    exact = 1e-12 if dtype == torch.float64 else 1e-4
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=exact, atol=exact, equal_nan=True)
    is_written = torch.zeros(NUM_SLOTS, RING, dtype=torch.bool, device=device)
    for slot, start, length in ENTRIES:
        is_written[slot, torch.arange(start + 1, start + length + 1) % RING] = True
    assert torch.equal(change[is_written], (got[0] - before)[is_written])
    assert change[~is_written].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_no_slopes(backend):
    c, x, x0, change, w, m = given(2, 6, torch.float32, device=device_of(backend))
    empty = torch.zeros(0, dtype=torch.int64, device=x.device)
    w = replace(w, **{name: empty for name in vars(w) if name != "max_length"}, max_length=0)
    assert secant_slopes(x, x0, change, m[:0], w, c, backend=backend).shape == (0,)


@needs_cpp
def test_indices_that_point_outside_are_refused():
    c, x, x0, change, w, m = given(2, 6, torch.float32)
    for name, match in (("row_slot", "slots"), ("row_node", "nodes"), ("row_entry", "entries")):
        bad = getattr(w, name).clone()
        bad[3] = 99
        with pytest.raises(IndexError, match=f"{match} 99 to 100 lie outside"):
            secant_slopes(x, x0, change, m, replace(w, **{name: bad}), c, backend="cpp")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"change": torch.zeros(5, 9, 7)}, ValueError, "change must have shape (5, 9, 6) = [S, R"),
        ({"change": torch.zeros(5, 9, 6).double()}, TypeError, "change must be torch.float32"),
        ({"m": torch.zeros(16, 6)}, ValueError, "m must have shape (17, 6) = [rows, D]"),
        ({"m_null": torch.zeros(17, 5)}, ValueError, "m_null must have shape (17, 6)"),
        ({"backend": "cuda"}, ValueError, "backend must be None or one of"),
    ],
    ids=str,
)
def test_slopes_reject(changes, error, message):
    c, x, x0, change, w, m = given(2, 6, torch.float32)
    arguments = dict(x=x, x0=x0, change=change, m=m, windows=w, coefficients=c) | changes
    with pytest.raises(error, match=re.escape(message)):
        secant_slopes(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"slopes": torch.zeros(16)}, ValueError, "slopes must have shape (17,) = [rows]"),
        ({"slopes": torch.zeros(17).double()}, TypeError, "slopes must be torch.float32"),
        ({"change": torch.zeros(5, 8, 6)}, ValueError, "change must have shape (5, 9, 6)"),
        ({"change": torch.zeros(5, 6, 9).mT}, ValueError, "change must have stride 1"),
    ],
    ids=str,
)
def test_update_rejects(changes, error, message):
    c, x, x0, w, m, _ = problem(2, 6, torch.float32)
    with pytest.raises(error, match=re.escape(message)):
        picard_update_(x, x0, m, w, c, **changes)


def test_windows_reject_known():
    w = problem(2, 6, torch.float32)[3]
    with pytest.raises(ValueError, match=re.escape("known must have shape (4,) = [A], got (3,)")):
        replace(w, known=torch.zeros(3, dtype=torch.int64))
