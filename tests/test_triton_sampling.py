"""The sampling operations on Triton against their references, interpreted or on a GPU."""

from __future__ import annotations

import math

import pytest
import torch

from closeness import assert_close_to_reference
from ctd_engine.ops._dispatch import triton_unavailable_reason
from ctd_engine.ops._tuning import Blocks, ceil_div
from ctd_engine.ops.gather_rows import gather_rows
from ctd_engine.ops.picard_update import Coefficients, picard_update_
from ctd_engine.ops.predict_guess import predict_guess_
from ctd_engine.ops.trajectory_error import trajectory_error
from ragged_problem import ENTRIES, NUM_NODES, RING, problem

if triton_unavailable_reason() is not None:
    pytest.skip(f"no Triton: {triton_unavailable_reason()}", allow_module_level=True)

from ctd_engine.ops.picard_update.kernel import launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []

WALK, TILE = Blocks(0, 4, 1), Blocks(8, 4, 1)
SEEDS = torch.tensor([5, -7, 2**62, 0], device=DEVICE)


def first_order(c):
    """The same solver with a slope that a parallel scan can follow."""
    g = torch.cat([c.G[:, :1], torch.zeros_like(c.G[:, 1:])], dim=1)
    return Coefficients(c.A, c.B, c.C, g, c.P, c.Q, c.clip)


def in_double(c):
    return Coefficients(*(t.double() for t in (c.A, c.B, c.C, c.G, c.P, c.Q)), c.clip)


def update_case(order, blocks, dtype, noise, *, num_elements=7, m_dtype=None, clip=None, guided=0):
    """Fused, plain and exact results of one update: x, x0 and the sums of squares."""
    c, x, x0, windows, m, z = problem(order, num_elements, dtype, clip=clip, device=DEVICE)
    c = first_order(c) if blocks.length else c
    m = m.to(m_dtype or dtype)
    options = dict(
        z=z if noise == "given" else None,
        seeds=SEEDS if noise == "counter" else None,
        m_null=(m * 0.5 + 0.25) if guided else None,
        guidance_scale=guided or 1.0,
    )
    inside = torch.arange(windows.max_length, device=DEVICE) < windows.length[:, None]
    results = []
    for which in ("fused", "plain", "exact"):
        state = x.clone(), x0.clone()
        if which == "fused":
            sums = launch(*state, m, windows, c, **options, blocks=blocks)
            assert sums.shape[2] == ceil_div(num_elements, blocks.elements)
        elif which == "plain":
            sums = picard_update_(*state, m, windows, c, **options, backend="reference")
        else:
            wide = [t.double() for t in state]
            exact_options = {
                k: v.double() if k in ("z", "m_null") and v is not None else v
                for k, v in options.items()
            }
            sums = picard_update_(
                *wide, m.double(), windows, in_double(c), **exact_options, backend="reference"
            )
            state = wide
        results.append((*state, sums.sum(2)[inside]))
    return zip(*results, strict=True)


@pytest.mark.parametrize("noise", ["none", "given", "counter"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("blocks", [WALK, TILE], ids=["walk", "tile"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_update_matches_reference(order, blocks, dtype, noise):
    """Ragged windows between points of NaN; blocks of 4 cut 7 elements, a ring that wraps."""
    for fused, plain, exact in update_case(order, blocks, dtype, noise):
        assert_close_to_reference(fused, plain, exact)


@pytest.mark.parametrize("m_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("blocks", [WALK, TILE], ids=["walk", "tile"])
@pytest.mark.parametrize(("clip", "guided"), [(0.5, 0), (None, 2.5), (0.5, 2.5)])
def test_update_of_half_precision_clipped_and_guided(blocks, m_dtype, clip, guided):
    case = update_case(2, blocks, torch.float32, "given", m_dtype=m_dtype, clip=clip, guided=guided)
    for fused, plain, exact in case:
        assert_close_to_reference(fused, plain, exact)


@pytest.mark.parametrize("num_elements", [1, 3, 4, 5, 16, 17, 131])
def test_update_of_any_size_with_the_blocks_of_the_table(num_elements):
    c, x, x0, windows, m, _ = problem(1, num_elements, torch.float64, device=DEVICE)
    states = []
    for backend in ("triton", "reference"):
        state = x.clone(), x0.clone()
        picard_update_(*state, m, windows, c, seeds=SEEDS, backend=backend)
        states.append(state)
    for fused, plain in zip(*states, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("blocks", [WALK, TILE], ids=["walk", "tile"])
def test_update_with_other_strides(blocks):
    """Every tensor is a slice of a larger one, each with its own stride, in a sea of NaN."""
    c, x, x0, windows, m, z = problem(2, 6, torch.float64, device=DEVICE)
    c = first_order(c)
    plain = x.clone(), x0.clone()
    picard_update_(*plain, m, windows, c, z=z, backend="reference")

    def inside(tensor, extra):
        wide = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + extra), math.nan)
        wide[..., : tensor.shape[-1]] = tensor
        return wide, wide[..., : tensor.shape[-1]]

    (wide_x, x), (wide_x0, x0), (_, m), (_, z) = (
        inside(tensor, extra) for tensor, extra in ((x, 3), (x0, 5), (m, 1), (z, 2))
    )
    options = dict(seeds=None, m_null=None, guidance_scale=1.0)
    launch(x, x0, m, windows, c, z=z, **options, blocks=blocks)
    for fused, want in zip((x, x0), plain, strict=True):
        torch.testing.assert_close(fused, want, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert wide_x[..., 6:].isnan().all()
    assert wide_x0[..., 6:].isnan().all()


@pytest.mark.parametrize("blocks", [WALK, TILE], ids=["walk", "tile"])
def test_nothing_changes_at_the_fixed_point_bit_for_bit(blocks):
    c, x, x0, windows, m, _ = problem(2, 6, torch.float32, device=DEVICE)
    c = first_order(c)
    options = dict(z=None, seeds=SEEDS, m_null=None, guidance_scale=1.0, blocks=blocks)
    for _ in range(windows.max_length):
        launch(x, x0, m, windows, c, **options)
    done = x.clone()
    sums = launch(x, x0, m, windows, c, **options).sum(2)
    assert torch.equal(x.nan_to_num(0.5), done.nan_to_num(0.5))
    inside = torch.arange(windows.max_length, device=DEVICE) < windows.length[:, None]
    assert (sums[inside] == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("blocks", [WALK, TILE], ids=["walk", "tile"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_stays_in_its_sample_and_behind_its_point(blocks, bad):
    c, x, x0, windows, m, z = problem(1, 6, torch.float64, clip=2.0, device=DEVICE)
    row = int(((windows.row_slot == 0) & (windows.row_node == 8)).nonzero())
    m[row, 5] = bad
    if bad == math.inf:
        # clipping makes a number of infinity, but an infinite state stays infinite
        z[row, 5] = bad
    options = dict(z=z, seeds=None, m_null=None, guidance_scale=1.0, blocks=blocks)
    sums = launch(x, x0, m, windows, c, **options).sum(2)
    assert torch.isfinite(sums[1, :2]).all()
    assert not torch.isfinite(sums[1, 2:6]).any()
    for entry in (0, 2, 3):
        assert torch.isfinite(sums[entry, : ENTRIES[entry][2]]).all()


def test_update_is_bitwise_repeatable():
    c, x, x0, windows, m, _ = problem(1, 37, torch.float32, device=DEVICE)
    results = []
    for _ in range(2):
        state = x.clone(), x0.clone()
        results.append(
            (*state, picard_update_(*state, m, windows, c, seeds=SEEDS, backend="triton"))
        )
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.nan_to_num(0.5), other.nan_to_num(0.5))


@pytest.mark.parametrize("noise", ["none", "given", "counter"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("num_elements", [1, 7, 130])
def test_guess_matches_reference(order, noise, num_elements):
    c, x, x0, windows, _, _ = problem(order, num_elements, torch.float64, device=DEVICE)
    # nodes after the windows' first points are new; only what may be read holds numbers
    known = windows.start[:3] + 1
    count = torch.tensor([3, 1, 5], device=DEVICE)
    x0[windows.slot[:3], (known - 1) % RING] = 0.5
    z = torch.full((3, 5, num_elements), math.nan, dtype=torch.float64, device=DEVICE)
    for entry in range(3):
        z[entry, : count[entry]] = 0.1 * (entry + 1)
    options = dict(
        z=z if noise == "given" else None, seeds=SEEDS[:3] if noise == "counter" else None
    )
    states = []
    for backend in ("triton", "reference"):
        state = x.clone()
        predict_guess_(state, x0, windows.slot[:3], known, count, 5, c, **options, backend=backend)
        states.append(state)
    torch.testing.assert_close(*states, rtol=1e-12, atol=1e-12, equal_nan=True)
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
