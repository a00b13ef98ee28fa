"""The Picard update on Triton against its reference, interpreted or on a GPU."""

from __future__ import annotations

import math

import pytest
import torch

from closeness import assert_close_to_reference
from ctd_engine.ops._dispatch import triton_unavailable_reason
from ctd_engine.ops._tuning import Blocks, ceil_div
from ctd_engine.ops.picard_update import Coefficients, Windows, picard_update_
from ragged_problem import ENTRIES, in_double, other_layout, problem

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
    m_null = 0.5 * m + 0.25
    plain = x.clone(), x0.clone()
    guidance = dict(m_null=m_null, guidance_scale=2.5)
    picard_update_(*plain, m, windows, c, z=z, **guidance, backend="reference")

    def inside(tensor, extra):
        wide = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + extra), math.nan)
        wide[..., : tensor.shape[-1]] = tensor
        return wide, wide[..., : tensor.shape[-1]]

    (wide_x, x), (wide_x0, x0), (_, m), (_, z), (_, m_null) = (
        inside(tensor, extra) for tensor, extra in ((x, 3), (x0, 5), (m, 1), (z, 2), (m_null, 4))
    )
    assert len({t.stride(-2) for t in (x, x0, m, z, m_null)}) == 5
    guidance = dict(m_null=m_null, guidance_scale=2.5)
    launch(x, x0, m, windows, c, z=z, seeds=None, **guidance, blocks=blocks)
    for fused, want in zip((x, x0), plain, strict=True):
        torch.testing.assert_close(fused, want, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert wide_x[..., 6:].isnan().all()
    assert wide_x0[..., 6:].isnan().all()


@pytest.mark.parametrize("blocks", [WALK, TILE], ids=["walk", "tile"])
def test_update_with_elements_apart(blocks):
    """Tables, indices, outputs and noise whose last stride is 2."""
    c, x, x0, windows, m, z = problem(2, 6, torch.float64, device=DEVICE)
    c = first_order(c)
    null = 0.5 * m + 0.25
    states = []
    for lay_out in (lambda t: t, other_layout):
        state = x.clone(), x0.clone()
        tables = [lay_out(t) for t in (c.A, c.B, c.C, c.G, c.P, c.Q)]
        laid_out = {
            name: lay_out(t) if isinstance(t, torch.Tensor) else t
            for name, t in vars(windows).items()
        }
        launch(
            *state,
            lay_out(m),
            Windows(**laid_out),
            Coefficients(*tables, c.clip),
            z=lay_out(z),
            seeds=None,
            m_null=lay_out(null),
            guidance_scale=2.5,
            blocks=blocks,
        )
        states.append(state)
    for one, other in zip(*states, strict=True):
        assert torch.equal(one.nan_to_num(0.5), other.nan_to_num(0.5))


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


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter has no threads that could race")
@pytest.mark.parametrize(("length", "elements"), [(16, 64), (64, 16), (128, 8)])
def test_tiles_of_many_warps_read_before_they_write(length, elements):
    """Each row is read by the threads of the next one: 8 warps, 256 programs, 50 launches."""
    windows, num_elements, order = 64, 4 * elements, 3
    generator = torch.Generator(DEVICE).manual_seed(0)

    def randn(*shape, dtype=torch.float32):
        values = torch.randn(*shape, generator=generator, dtype=torch.float64, device=DEVICE)
        return (0.3 * values).to(dtype)

    c = Coefficients(
        *(randn(length, order) for _ in range(2)),
        randn(length),
        randn(length, order),
        *(randn(length) for _ in range(2)),
        clip=None,
    )
    c = first_order(c)
    x, x0 = (randn(windows, length + order, num_elements) for _ in range(2))
    m, z = (randn(windows * length, num_elements) for _ in range(2))
    slot = torch.arange(windows, device=DEVICE)
    entry = slot.repeat_interleave(length)
    offset = torch.arange(length, device=DEVICE).repeat(windows)
    lengths, zero = torch.full_like(slot, length), torch.zeros_like(slot)
    w = Windows(slot, zero, lengths, slot * length, entry, offset, entry, offset, length)
    options = dict(seeds=None, m_null=None, guidance_scale=1.0)

    def updated(state, m, c, z, blocks):
        launch(*state, m, w, c, z=z, **options, blocks=blocks)
        return state

    tile = Blocks(length, elements, 8)
    first = updated((x.clone(), x0.clone()), m, c, z, tile)
    for _ in range(50):
        again = updated((x.clone(), x0.clone()), m, c, z, tile)
        for one, other in zip(first, again, strict=True):
            assert torch.equal(one, other)
    plain = updated((x.clone(), x0.clone()), m, c, z, Blocks(0, 4 * elements, 1))
    exact = updated(
        (x.double(), x0.double()), m.double(), in_double(c), z.double(), Blocks(0, elements, 1)
    )
    for fused, walked, wide in zip(first, plain, exact, strict=True):
        assert_close_to_reference(fused, walked, wide)
