"""The sampler's operations against loops over single points, inside buffers of NaN."""

from __future__ import annotations

import math

import pytest
import torch

from ctd_engine.ops.gather_rows import gather_rows
from ctd_engine.ops.picard_update import Coefficients, picard_update_
from ctd_engine.ops.predict_guess import predict_guess_
from ragged_problem import ENTRIES, NUM_NODES, NUM_SLOTS, RING, problem


def picard_by_hand(x, x0, m, z, entries, c):
    """Design 3.2 read aloud, point by point, in the form without differences."""
    order, errors = c.A.shape[1], []
    x, x0 = x.clone(), x0.clone()
    row = 0
    for slot, start, length in entries:
        old = {i: x[slot, i % RING].clone() for i in range(max(start - 3, 0), start + length + 1)}
        new, data = dict(old), {}
        for i in range(max(start - order + 1, 0), start):
            data[i] = x0[slot, i % RING].clone()
        changes = []
        for i in range(start, start + length):
            data[i] = c.P[i] * old[i] + c.Q[i] * m[row]
            if c.clip is not None:
                data[i] = data[i].clamp(-c.clip, c.clip)
            point = torch.zeros_like(data[i]) if z is None else c.C[i] * z[row]
            for k in range(min(order, i + 1)):
                point = point + (c.A[i, k] - c.G[i, k]) * old[i - k] + c.B[i, k] * data[i - k]
                point = point + c.G[i, k] * new[i - k]
            new[i + 1] = point
            changes.append((point - old[i + 1]).square().sum())
            row += 1
        for i in range(start, start + length):
            x[slot, (i + 1) % RING] = new[i + 1]
            x0[slot, i % RING] = data[i]
        errors.append(changes)
    return x, x0, errors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("num_elements", [1, 7, 64])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_picard_update_matches_the_loop(order, num_elements, clip, dtype):
    c, x, x0, windows, m, z = problem(order, num_elements, dtype, clip=clip)
    for noise in (z, None):
        wide = [t.double() if t is not None else None for t in (x, x0, m, noise)]
        wide_c = Coefficients(*(t.double() for t in (c.A, c.B, c.C, c.G, c.P, c.Q)), clip)
        want_x, want_x0, want_errors = picard_by_hand(*wide, ENTRIES, wide_c)
        got_x, got_x0 = x.clone(), x0.clone()
        errors = picard_update_(got_x, got_x0, m, windows, c, z=noise).sum(2)
        scale = float(want_x.nan_to_num().abs().max())
        tolerance = dict(
            rtol=1e-9 if dtype == torch.float64 else 1e-4,
            atol=scale * (1e-12 if dtype == torch.float64 else 1e-4),
            equal_nan=True,
        )
        torch.testing.assert_close(got_x.double(), want_x, **tolerance)
        torch.testing.assert_close(got_x0.double(), want_x0, **tolerance)
        for row, want, (_, _, length) in zip(errors, want_errors, ENTRIES, strict=True):
            torch.testing.assert_close(
                row[:length].double(), torch.stack(want), rtol=tolerance["rtol"] * 10, atol=0
            )


def test_picard_update_touches_only_its_windows():
    """Points that it may not write keep their bits, in slots without a window too."""
    c, x, x0, windows, m, z = problem(2, 5, torch.float64)
    x, x0 = x.nan_to_num(7.0), x0.nan_to_num(7.0)
    before = x.clone(), x0.clone()
    picard_update_(x, x0, m, windows, c, z=z)
    may_change = torch.zeros(2, NUM_SLOTS, RING, dtype=torch.bool)
    for slot, start, length in ENTRIES:
        for node in range(start, start + length):
            may_change[0, slot, (node + 1) % RING] = True
            may_change[1, slot, node % RING] = True
    for now, then, mask in zip((x, x0), before, may_change, strict=True):
        assert torch.equal(now[~mask], then[~mask])
        assert (now[mask] != then[mask]).any()


def test_picard_update_keeps_nan_in_its_sample_and_behind_its_point():
    c, x, x0, windows, m, z = problem(2, 5, torch.float64)
    # node 8 of the second entry, its third point
    bad = int(((windows.row_slot == 0) & (windows.row_node == 8)).nonzero())
    m[bad, 2] = math.nan
    clean = x.clone()
    picard_update_(clean, x0.clone(), m.nan_to_num(0.0), windows, c, z=z)
    errors = picard_update_(x, x0, m, windows, c, z=z).sum(2)
    assert torch.isfinite(errors[1, :2]).all()
    assert torch.isnan(errors[1, 2:6]).all()
    for entry in (0, 2, 3):
        assert torch.isfinite(errors[entry, : ENTRIES[entry][2]]).all()
    for node in (6, 7, 8):
        assert torch.equal(x[0, node % RING], clean[0, node % RING])


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_window_without_change_is_a_fixed_point(order):
    """States that already follow the solver stay, bit for bit, whatever G is."""
    c, x, x0, windows, m, z = problem(order, 4, torch.float64)
    for _ in range(windows.max_length):
        picard_update_(x, x0, m, windows, c, z=z)
        # a model that ignores its input: m is given, x0 changes only through x
    done = x.clone()
    errors = picard_update_(x, x0, m, windows, c, z=z).sum(2)
    assert torch.equal(x.nan_to_num(0.5), done.nan_to_num(0.5))
    inside = torch.arange(windows.max_length) < windows.length[:, None]
    assert (errors[inside] == 0).all()


def test_picard_update_is_repeatable():
    c, x, x0, windows, m, z = problem(3, 33, torch.float32)
    results = []
    for _ in range(2):
        state = x.clone(), x0.clone()
        results.append((*state, picard_update_(*state, m, windows, c, z=z)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.nan_to_num(0.5), other.nan_to_num(0.5))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("noisy", [True, False])
def test_predict_guess_matches_the_loop(order, noisy):
    num_elements = 6
    c, x, x0, _, _, _ = problem(order, num_elements, torch.float64)
    x0 = x0.fill_(math.nan)
    # slot, known, count; the last one ends at the last node and wraps around the ring
    new = [(3, 4, 3), (0, 12, 1), (4, 20, 3)]
    generator = torch.Generator().manual_seed(1)
    for slot, known, _ in new:
        for k in range(order):
            x[slot, (known - k) % RING] = torch.randn(num_elements, generator=generator).double()
        x0[slot, (known - 1) % RING] = torch.randn(num_elements, generator=generator).double()
    # noise beyond a count is never read
    z = torch.full((len(new), 3, num_elements), math.nan, dtype=torch.float64)
    want = x.clone()
    for entry, (slot, known, count) in enumerate(new):
        hold = x0[slot, (known - 1) % RING]
        for j in range(count):
            i = known + j
            z[entry, j] = torch.randn(num_elements, generator=generator).double()
            point = c.C[i] * z[entry, j] if noisy else torch.zeros(num_elements).double()
            for k in range(order):
                point = point + c.A[i, k] * want[slot, (i - k) % RING] + c.B[i, k] * hold
            want[slot, (i + 1) % RING] = point
    slot, known, count = (torch.tensor(column) for column in zip(*new, strict=True))
    predict_guess_(x, x0, slot, known, count, 3, c, z=z if noisy else None)
    torch.testing.assert_close(x, want, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert torch.isfinite(want[0, 13 % RING]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_gather_rows_matches_the_loop(dtype):
    """Scaled in the state's precision and rounded once."""
    _, x, _, windows, _, _ = problem(1, 7, torch.float64)
    scale = torch.rand(NUM_NODES, generator=torch.Generator().manual_seed(2)).double()
    times = torch.arange(NUM_NODES, dtype=torch.float64)
    got, time = gather_rows(x, windows.row_slot, windows.row_node, scale, times, dtype)
    assert got.dtype == dtype
    assert torch.equal(time, windows.row_node.double())
    for row, slot, node in zip(got, windows.row_slot, windows.row_node, strict=True):
        assert torch.equal(row, (scale[node] * x[slot, node % RING]).to(dtype))
    assert torch.isfinite(got).all()


def test_unknown_backend():
    c, x, x0, windows, m, z = problem(1, 3, torch.float64)
    with pytest.raises(ValueError, match="backend must be None or one of"):
        picard_update_(x, x0, m, windows, c, z=z, backend="cuda")
