"""Counter-based noise: known answers, the normal law, and independence of the neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from ctd_engine import _ext
from ctd_engine.noise import (
    CounterNoise,
    philox_4x32,
    philox_normal,
    philox_normal_reference,
    seeds_from,
)

CPU = torch.device("cpu")


# known-answer vectors of the Random123 distribution, philox 4x32 with 10 rounds
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    words = philox_4x32(
        tuple(torch.tensor([k]) for k in key), tuple(torch.tensor([c]) for c in counter)
    )
    assert tuple(int(word) for word in words) == expected


def test_counter_layout():
    """Element d of node i is word d % 4 of the counter (d // 4, i, stream, 0)."""
    seed, node, d = 0x0123456789ABCDEF, 7, 6
    key = (torch.tensor([seed & 0xFFFFFFFF]), torch.tensor([seed >> 32]))
    counter = tuple(torch.tensor([c]) for c in (d // 4, node, 1, 0))
    words = [int(word) for word in philox_4x32(key, counter)]
    radius = torch.tensor(-2.0, dtype=torch.float64).mul(
        torch.log(torch.tensor(words[2], dtype=torch.float32).double() / 2**32)
    )
    angle = torch.tensor(words[3], dtype=torch.float32).double() / 2**32 * 2 * torch.pi
    z = philox_normal(torch.tensor([seed]), torch.tensor([node]), 9, dtype=torch.float64)
    assert z.shape == (1, 9)
    assert z[0, d].item() == pytest.approx((radius.sqrt() * angle.cos()).item(), abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_law(dtype):
    seeds = torch.arange(50) * 2**57
    z = philox_normal(seeds, torch.arange(50), 2000, dtype=dtype).flatten()
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3
    # tails and symmetry, which Kolmogorov-Smirnov hardly sees
    assert abs(stats.kurtosis(z.numpy())) < 0.08
    assert abs(stats.skew(z.numpy())) < 0.04


def test_no_correlation_between_elements_nodes_and_seeds():
    z = philox_normal(torch.tensor([1, 1, 2]), torch.tensor([0, 1, 0]), 40_000)
    shifted = torch.stack([z[0, :-1], z[0, 1:], z[1, :-1], z[2, :-1]])
    correlation = torch.corrcoef(shifted) - torch.eye(4)
    assert correlation.abs().max() < 5 / 40_000**0.5


def test_precisions_agree():
    seeds, nodes = torch.tensor([3]), torch.tensor([11])
    single = philox_normal(seeds, nodes, 1001)
    double = philox_normal(seeds, nodes, 1001, dtype=torch.float64)
    assert (single - double).abs().max() < 2e-6
    half = philox_normal(seeds, nodes, 1001, dtype=torch.float16)
    assert torch.equal(half, single.half())


needs_extension = pytest.mark.skipif(
    _ext.unavailable_reason() is not None, reason=f"no extension: {_ext.unavailable_reason()}"
)


@needs_extension
@pytest.mark.parametrize("num_elements", [1, 2, 3, 5, 255, 256, 257, 1023, 1029])
@pytest.mark.parametrize("stream", [0, 1])
def test_compiled_noise_is_the_reference(num_elements, stream):
    """The same numbers in fp32; fp64 may differ by the rounding of the reference's angle."""
    seeds = torch.tensor([0, 1, -1, 2**62 + 12345, -(2**63)])
    nodes = torch.tensor([0, 5, 999, 2**31 - 1, 7])
    for dtype, most in ((torch.float32, 0.0), (torch.float64, 4e-15)):
        z = philox_normal(seeds, nodes, num_elements, stream=stream, dtype=dtype)
        want = philox_normal_reference(seeds, nodes, num_elements, stream=stream, dtype=dtype)
        assert z.dtype == dtype
        assert z.shape == want.shape == (5, num_elements)
        assert (z - want).abs().max() <= most


@needs_extension
def test_compiled_noise_is_as_exact_as_rounding_allows():
    """Against Box-Muller in 80 bits, for 400,000 counters: within 4 units in the last place."""
    if np.finfo(np.longdouble).nmant < 63:
        pytest.skip("this machine has no wider float")
    seeds, nodes = torch.arange(100) * 2**40, torch.arange(100)
    z = philox_normal(seeds, nodes, 4000, dtype=torch.float64).numpy()
    block = torch.arange(1000)[None, :]
    key = (seeds[:, None] & 0xFFFFFFFF, seeds[:, None] >> 32)
    zero = torch.zeros_like(block)
    words = philox_4x32(key, (block, nodes[:, None], zero + 1, zero))
    u0, u1, u2, u3 = (w.to(torch.float32).numpy().astype(np.longdouble) / 2**32 for w in words)
    wide = np.empty_like(z, dtype=np.longdouble)
    # pi as a sum of two doubles
    half_pi = (np.longdouble(np.pi) + np.longdouble(1.2246467991473532e-16)) / 2
    for k, (radius, angle) in enumerate(((u0, u1), (u2, u3))):
        radius = np.sqrt(-2 * np.log(radius))
        quarter = np.rint(4 * angle)
        y = half_pi * (4 * angle - quarter)
        # (cos, sin), (-sin, cos), (-cos, -sin), (sin, -cos)
        turned = np.stack([np.cos(y), np.sin(y), -np.cos(y), -np.sin(y)])
        at = quarter.astype(np.int64)
        for shift in (0, 1):
            part = np.take_along_axis(turned, (shift - at)[None] % 4, axis=0)[0]
            wide[:, 2 * k + shift :: 4] = radius * part
    ulps = np.abs(z - wide) / np.spacing(np.abs(wide.astype(np.float64)))
    assert ulps.max() < 4.0


def test_noise_rejects_what_is_no_vector_of_counters():
    seeds = torch.arange(3)
    with pytest.raises(ValueError, match=r"nodes must be int64 of shape \(3,\) = \[R\]"):
        philox_normal(seeds, torch.arange(2), 4)
    with pytest.raises(ValueError, match=r"seeds must be int64 .* got torch.int32"):
        philox_normal(seeds.int(), seeds, 4)


def test_independent_of_neighbours():
    """A sample's noise is the same bits alone, in any batch and in any order."""
    batch = CounterNoise([4, 5, 2**64 - 1], 17, CPU)
    alone = CounterNoise([2**64 - 1], 17, CPU)
    nodes, samples = torch.tensor([9, 0, 3]), torch.tensor([2, 1, 2])
    together = batch.step(nodes, samples, torch.float32)
    assert torch.equal(
        together[2], alone.step(torch.tensor([3]), torch.tensor([0]), torch.float32)[0]
    )
    assert torch.equal(together, batch.step(nodes.flip(0), samples.flip(0), torch.float32).flip(0))
    initial = batch.initial(torch.tensor([2]), torch.float32)
    assert torch.equal(initial, alone.initial(torch.tensor([0]), torch.float32))
    # the initial noise is not the noise of step 0
    assert not torch.equal(initial, batch.step(torch.tensor([0]), torch.tensor([2]), torch.float32))


def test_seeds():
    assert seeds_from(None, [3, 2**64 - 1], 2) == [3, 2**64 - 1]
    many = seeds_from(0, None, 1000) + seeds_from(1, None, 1000)
    assert len(set(many)) == 2000
    assert seeds_from(0, None, 3) == seeds_from(0, None, 1000)[:3]
    assert all(0 <= seed < 2**64 for seed in many)
    torch.manual_seed(7)
    first = seeds_from(None, None, 2)
    torch.manual_seed(7)
    assert seeds_from(None, None, 2) == first


@pytest.mark.parametrize(
    ("seed", "seeds", "error", "match"),
    [
        (1, [1], ValueError, "either seed .* or seeds"),
        (None, [1, 2, 3], ValueError, "one entry per sample: 2, got 3"),
        (-1, None, ValueError, r"seed must be in \[0, 2\*\*64\), got -1"),
        (2**64, None, ValueError, "seed must be in"),
        (1.0, None, TypeError, "seed must be an integer, got float"),
        (None, [1, "a"], TypeError, r"seeds\[1\] must be an integer, got str"),
    ],
)
def test_rejects(seed, seeds, error, match):
    with pytest.raises(error, match=match):
        seeds_from(seed, seeds, 2)
