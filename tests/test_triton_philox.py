"""Normals that kernels make from counters against the reference, interpreted or on a GPU."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ctd_engine.noise import _box_muller as reference_box_muller
from ctd_engine.noise import philox_4x32, philox_normal
from ctd_engine.ops._dispatch import triton_unavailable_reason

if triton_unavailable_reason() is not None:
    pytest.skip(f"no Triton: {triton_unavailable_reason()}", allow_module_level=True)

import triton
import triton.language as tl

from ctd_engine.ops._device import _box_muller, philox_normal_1d, philox_normal_2d

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


@triton.jit
def _words_kernel(out_ptr, seed_ptr, Q: tl.constexpr):
    quarter = tl.arange(0, Q)
    zero = quarter * 0
    words = tl.philox(tl.load(seed_ptr), quarter, zero + 7, zero + 1, zero)
    for i in tl.static_range(4):
        tl.store(out_ptr + i * Q + quarter, words[i].to(tl.int64))


@triton.jit
def _normals_kernel(out_ptr, seed_ptr, Q: tl.constexpr, L: tl.constexpr):
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    quarter = tl.arange(0, Q)
    seed = tl.load(seed_ptr)
    if L == 0:
        z = philox_normal_1d(seed, 7, 1, quarter, dtype)
        tl.store(out_ptr + tl.arange(0, 4 * Q), z)
    else:
        nodes = tl.arange(0, L)[:, None]
        z = philox_normal_2d(seed, nodes, 1, quarter[None, :], dtype)
        tl.store(out_ptr + nodes * 4 * Q + tl.arange(0, 4 * Q)[None, :], z)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1, -1])
def test_philox_words_are_the_reference_bit_for_bit(seed):
    out = torch.empty(4, 64, dtype=torch.int64, device=DEVICE)
    _words_kernel[(1,)](out, torch.tensor([seed], device=DEVICE), 64)
    mask = 0xFFFFFFFF
    key = (torch.tensor(seed & mask), torch.tensor((seed >> 32) & mask))
    block = torch.arange(64)
    zero = torch.zeros_like(block)
    want = torch.stack(philox_4x32(key, (block, zero + 7, zero + 1, zero)))
    assert torch.equal(out.cpu(), want)


def test_philox_normals_are_the_reference():
    """fp32: within 2 units in the last place; the reference is rounded once. fp64: to 1e-14."""
    apart = []
    for seed in range(64):
        seeds, node = torch.tensor([seed * 7919**4], device=DEVICE), torch.tensor([7])
        out = torch.empty(16384, device=DEVICE)
        _normals_kernel[(1,)](out, seeds, 4096, 0)
        want = philox_normal(seeds.cpu(), node, 16384)[0].numpy()
        apart.append(np.abs(out.cpu().numpy() - want) / np.spacing(np.abs(want)))
    ulps = np.concatenate(apart)
    print(f"ulps: max {ulps.max():.1f}, above 1: {(ulps > 1).mean():.2e}")
    assert ulps.max() <= 2
    exact = torch.empty(4096, dtype=torch.float64, device=DEVICE)
    _normals_kernel[(1,)](exact, seeds, 1024, 0)
    want = philox_normal(seeds.cpu(), node, 4096, dtype=torch.float64)[0]
    torch.testing.assert_close(exact.cpu(), want, rtol=0.0, atol=1e-14)


@triton.jit
def _pairs_kernel(word_ptr, out_ptr, Q: tl.constexpr):
    i = tl.arange(0, Q)
    radius = tl.load(word_ptr + i).to(tl.uint32)
    angle = tl.load(word_ptr + Q + i).to(tl.uint32)
    cos, sin = _box_muller(radius, angle, tl.float32)
    tl.store(out_ptr + i, cos)
    tl.store(out_ptr + Q + i, sin)


@pytest.mark.parametrize("where", ["small words", "large words", "eighths of a turn"])
def test_normals_of_unusual_words(where):
    """Radii from the largest to 0, and angles beside the seams of the reduction."""
    count = 1 << 14
    i = torch.arange(count)
    words = torch.randint(0, 2**32, (2, count), generator=torch.Generator().manual_seed(0))
    if where == "small words":
        words[0] = i
    elif where == "large words":
        words[0] = 2**32 - 1 - 7 * i
    else:
        # fp32 words beside each seam
        words[1] = ((i % 8) * 2**29 + (i // 8 - count // 16) * 128) % 2**32
    out = torch.empty(2, count, device=DEVICE)
    _pairs_kernel[(1,)](words.to(DEVICE), out, count)
    want = torch.stack(reference_box_muller(*words)).float().numpy()
    # where a coordinate is 0 the reference's cosine of pi / 2 is 1e-16
    apart = np.abs(out.cpu().numpy() - want) / np.maximum(np.spacing(np.abs(want)), 1e-15)
    assert apart.max() <= 2


@triton.jit
def _box_muller_kernel(out_ptr):
    zero = tl.arange(0, 2).to(tl.uint32) * 0
    cos, sin = _box_muller(zero, zero, tl.float32)
    tl.store(out_ptr + tl.arange(0, 2), cos)
    tl.store(out_ptr + 2 + tl.arange(0, 2), sin)


def test_a_word_of_zero_is_a_finite_normal():
    """log(0) is one word in 2^32: it counts as the word 1."""
    out = torch.empty(4, device=DEVICE)
    _box_muller_kernel[(1,)](out)
    largest = math.sqrt(2.0 * 32.0 * math.log(2.0))
    assert out.tolist() == pytest.approx([largest, largest, 0.0, 0.0])


def test_philox_tile_has_the_rows_of_its_nodes():
    seeds = torch.tensor([12345], device=DEVICE)
    out = torch.empty(8, 16, dtype=torch.float64, device=DEVICE)
    _normals_kernel[(1,)](out, seeds, 4, 8)
    want = philox_normal(seeds.cpu().expand(8), torch.arange(8), 16, dtype=torch.float64)
    torch.testing.assert_close(out.cpu(), want, rtol=0.0, atol=1e-14)
