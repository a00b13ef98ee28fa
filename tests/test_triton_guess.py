"""First guess, row gather and error check on Triton, interpreted or on a GPU."""

from __future__ import annotations

import math

import pytest
import torch

from closeness import assert_close_to_reference
from ctd_engine.ops._dispatch import triton_unavailable_reason
from ctd_engine.ops.gather_rows import gather_rows
from ctd_engine.ops.picard_update import Coefficients
from ctd_engine.ops.predict_guess import predict_guess_
from ctd_engine.ops.trajectory_error import trajectory_error
from ragged_problem import NUM_NODES, RING, in_double, other_layout, problem

if triton_unavailable_reason() is not None:
    pytest.skip(f"no Triton: {triton_unavailable_reason()}", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
SEEDS = torch.tensor([5, -7, 2**62, 0], device=DEVICE)


@pytest.mark.parametrize("noise", ["none", "given", "counter"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("num_elements", [1, 7, 130])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_guess_matches_reference(dtype, order, noise, num_elements):
    c, x, x0, windows, _, _ = problem(order, num_elements, dtype, device=DEVICE)
    # nodes after the windows' first points are new; only what may be read holds numbers
    known = windows.start[:3] + 1
    count = torch.tensor([3, 1, 5], device=DEVICE)
    x0[windows.slot[:3], (known - 1) % RING] = 0.5
    z = torch.full((3, 5, num_elements), math.nan, dtype=dtype, device=DEVICE)
    for entry in range(3):
        z[entry, : count[entry]] = 0.1 * (entry + 1)
    states = []
    for backend, wide in (("triton", False), ("reference", False), ("reference", True)):
        state, held, noise_given, table = x.clone(), x0, z, c
        if wide:
            state, held, noise_given, table = state.double(), x0.double(), z.double(), in_double(c)
        options = dict(
            z=noise_given if noise == "given" else None,
            seeds=SEEDS[:3] if noise == "counter" else None,
        )
        indices = (windows.slot[:3], known, count)
        predict_guess_(state, held, *indices, 5, table, **options, backend=backend)
        states.append(state)
    assert_close_to_reference(*states)
    assert not torch.equal(states[0].nan_to_num(0.5), x.nan_to_num(0.5))


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_guess_holds_nothing_before_the_first_model_call(order, backend):
    """known = 0 in a ring of NaN; an entry with no new points is left alone."""
    c, x, x0, _, _, _ = problem(order, 6, torch.float64, device=DEVICE)
    x.fill_(math.nan)
    x[1, 0], x0[:] = 2.0, math.nan
    slot, known, count = (torch.tensor(v, device=DEVICE) for v in ([1, 2], [0, 3], [2, 0]))
    predict_guess_(x, x0, slot, known, count, 2, c, backend=backend)
    first = c.A[0, 0] * 2.0
    second = c.A[1, 0] * first + (c.A[1, 1] * 2.0 if order > 1 else 0.0)
    torch.testing.assert_close(x[1, 1], first.expand(6), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(x[1, 2], second.expand(6), rtol=1e-12, atol=0.0)
    assert x[[0, 2, 3, 4]].isnan().all()
    assert x[1, 3:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_elements", [1, 7, 600])
def test_gather_matches_reference(num_elements, dtype):
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    _, x, _, windows, _, _ = problem(1, num_elements, state_dtype, device=DEVICE)
    scale = torch.linspace(0.5, 1.5, NUM_NODES, dtype=state_dtype, device=DEVICE)
    times = torch.linspace(999.0, 0.0, NUM_NODES, dtype=state_dtype, device=DEVICE)
    arguments = (x, windows.row_slot, windows.row_node, scale, times, dtype)
    fused, fused_time = gather_rows(*arguments, backend="triton")
    plain, plain_time = gather_rows(*arguments, backend="reference")
    assert fused.dtype == dtype
    assert torch.equal(fused_time, plain_time)
    # the interpreter truncates when it stores bf16
    ulps = 1.0 if dtype == torch.bfloat16 and DEVICE == "cpu" else 0.0
    torch.testing.assert_close(fused, plain, rtol=ulps * torch.finfo(dtype).eps, atol=0.0)


@pytest.mark.parametrize("num_blocks", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_error_check_matches_reference(seed, num_blocks):
    generator = torch.Generator().manual_seed(seed)
    num_nodes, longest = 30, 9
    partials = torch.rand(8, longest, num_blocks, generator=generator, dtype=torch.float64)
    for bad in (math.nan, math.inf):
        partials[torch.rand(partials.shape, generator=generator) < 0.03] = bad
    threshold = 0.1 * num_blocks * torch.rand(num_nodes + 1, generator=generator).double()
    length = torch.randint(1, longest + 1, (8,), generator=generator)
    start = torch.randint(0, num_nodes - longest + 1, (8,), generator=generator)
    for entry in range(8):
        # what lies beyond a length is undefined: the worst that it can be is convergence
        partials[entry, int(length[entry]) :] = 0.0
    arguments = [t.to(DEVICE) for t in (partials, threshold, start, length)]
    arguments.insert(1, 8)
    fused = trajectory_error(*arguments, backend="triton")
    plain = trajectory_error(*arguments, backend="reference")
    for one, other in zip(fused, plain, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("length", [1, 2, 8, 9])
def test_error_check_of_whole_windows(length):
    """All converged, none, and all NaN, at lengths on and beside a power of two."""
    rows = torch.tensor([0.0, 2.0, math.nan], device=DEVICE)
    partials = rows[:, None, None].expand(3, length, 1).contiguous()
    threshold = torch.ones(length + 1, device=DEVICE)
    start = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    lengths = torch.full_like(start, length)
    accepted, finite = trajectory_error(partials, 1, threshold, start, lengths, backend="triton")
    assert accepted.tolist() == [length, 1, 1]
    assert finite.tolist() == [length, length, 0]


def test_tables_and_indices_with_elements_apart():
    c, x, x0, windows, _, _ = problem(2, 6, torch.float64, device=DEVICE)
    count, known = torch.ones_like(windows.slot), windows.start + 1
    x0[windows.slot, windows.start % RING] = 0.5
    z = torch.linspace(-1.0, 1.0, 24, dtype=torch.float64, device=DEVICE).reshape(4, 1, 6)
    partials = torch.linspace(0.0, 1.0, 72, dtype=torch.float64, device=DEVICE).reshape(4, 6, 3)
    threshold = torch.full((NUM_NODES + 1,), 0.2, dtype=torch.float64, device=DEVICE)
    results = []
    for lay_out in (lambda t: t, other_layout):
        tables = [lay_out(t) for t in (c.A, c.B, c.C, c.G, c.P, c.Q)]
        coefficients = Coefficients(*tables, c.clip)
        indices = [lay_out(t) for t in (windows.slot, known, count)]
        guessed = x.clone()
        predict_guess_(guessed, x0, *indices, 1, coefficients, z=lay_out(z), backend="triton")
        seeded = x.clone()
        predict_guess_(
            seeded, x0, *indices, 1, coefficients, seeds=lay_out(SEEDS), backend="triton"
        )
        rows = [lay_out(t) for t in (windows.row_slot, windows.row_node)]
        scale, times = lay_out(c.P), lay_out(c.Q)
        gathered = gather_rows(x, *rows, scale, times, torch.float64, backend="triton")
        bounds = [lay_out(t) for t in (threshold, windows.start, windows.length)]
        advance = trajectory_error(lay_out(partials), 6, *bounds, backend="triton")
        results.append((guessed, seeded, *gathered, *advance))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.nan_to_num(0.5), other.nan_to_num(0.5))
