"""Noise from a counter: the same normal numbers in any window, batch, order and device.

Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") turns a key and
a 128-bit counter into four 32-bit words; Box-Muller turns the words into four normals.

    key     = (seed low, seed high)                 one 64-bit seed per sample
    counter = (d // 4, node i, stream, 0)           element d of the noise of node i
    word    = d % 4                                 words (0, 1) and (2, 3) are Box-Muller pairs

This is the layout of `tl.philox(seed, d // 4, i, stream, 0)`, so that a kernel can make the same
words in registers. Nothing is stored; a sample can be made again alone from its seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from typing import Protocol

import numpy as np
import torch

from ctd_engine import _ext

__all__ = [
    "CallableNoise",
    "CounterNoise",
    "NoiseSource",
    "TensorNoise",
    "philox_4x32",
    "philox_normal",
    "philox_normal_reference",
    "seeds_from",
]

# multipliers and Weyl increments of Philox 4x32
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
STREAM_INITIAL, STREAM_STEP, STREAM_SEEDS = 0, 1, 2
_MAX_SEED = 2**64 - 1


class NoiseSource(Protocol):
    """Where a sampler's noise comes from. Rows are (node, sample) pairs, in any order."""

    def initial(self, samples: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Standard normal noise [R, D] of x_0 for samples [R]."""
        ...

    def step(self, nodes: torch.Tensor, samples: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Standard normal noise z_i [R, D] of the steps that leave nodes [R] of samples [R]."""
        ...


def _multiply_high_low(a: torch.Tensor, b: int) -> tuple[torch.Tensor, torch.Tensor]:
    # int64 wraps modulo 2^64, which keeps all 64 bits of a 32 x 32 bit product
    product = a * b
    return (product >> 32) & _MASK, product & _MASK


def philox_4x32(
    key: tuple[torch.Tensor, torch.Tensor],
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    rounds: int = 10,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Philox 4x32: four 32-bit words from a key of two and a counter of four.

    All words are int64 tensors with values in [0, 2^32) that broadcast against each other.
    """
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(rounds):
        high0, low0 = _multiply_high_low(c0, _M0)
        high1, low1 = _multiply_high_low(c2, _M1)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def _uniform(word: torch.Tensor) -> torch.Tensor:
    # rounding the word to fp32 first makes one number for every precision and device
    return word.to(torch.float32).double() * 2.0**-32


def _box_muller(
    word_radius: torch.Tensor, word_angle: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    # the word 0 would be log(0): it counts as 1
    radius = torch.sqrt(-2.0 * torch.log(_uniform(word_radius.clamp(min=1))))
    angle = (2.0 * math.pi) * _uniform(word_angle)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def philox_normal(
    seeds: torch.Tensor,
    nodes: torch.Tensor,
    num_elements: int,
    *,
    stream: int = STREAM_STEP,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Standard normal noise from counters.

    Args:
        seeds: int64 [R], the 64 bits of each row's seed.
        nodes: int64 [R], the node whose noise it is.
        num_elements: D, elements per row.
        stream: 0 for the initial noise, 1 for the noise of steps.
        dtype: of the result. The normals are made in float64 and rounded once, so that every
            precision has the same numbers.

    Returns:
        [R, D] in `dtype`, on the device of `seeds`. On the CPU the compiled extension makes them
        if there is one, within 4e-15 of `philox_normal_reference`.

    Raises:
        ValueError: seeds and nodes are not two int64 vectors of one size.
    """
    for name, value in (("seeds", seeds), ("nodes", nodes)):
        if value.shape != (len(seeds),) or value.dtype != torch.int64:
            raise ValueError(
                f"{name} must be int64 of shape {(len(seeds),)} = [R], got {value.dtype} of shape "
                f"{tuple(value.shape)}"
            )
    is_plain = seeds.device.type == nodes.device.type == "cpu" and not torch.compiler.is_compiling()
    extension = _ext.load() if is_plain else None
    if extension is None:
        return philox_normal_reference(seeds, nodes, num_elements, stream=stream, dtype=dtype)
    is_single = dtype == torch.float32
    out = torch.empty(len(seeds), num_elements, dtype=torch.float32 if is_single else torch.float64)
    make = extension.philox_normal_float32 if is_single else extension.philox_normal_float64
    seeds, nodes = seeds.contiguous(), nodes.contiguous()
    make(
        seeds=seeds.data_ptr(),
        nodes=nodes.data_ptr(),
        stream=stream,
        out=out.data_ptr(),
        num_rows=len(seeds),
        num_elements=num_elements,
        max_threads=torch.get_num_threads(),
    )
    return out.to(dtype)


def philox_normal_reference(
    seeds: torch.Tensor,
    nodes: torch.Tensor,
    num_elements: int,
    *,
    stream: int = STREAM_STEP,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """`philox_normal` in PyTorch, on any device."""
    num_blocks = -(-num_elements // 4)
    block = torch.arange(num_blocks, device=seeds.device)[None, :]
    key = ((seeds & _MASK)[:, None], ((seeds >> 32) & _MASK)[:, None])
    zero = torch.zeros_like(block)
    w0, w1, w2, w3 = philox_4x32(key, (block, nodes[:, None], zero + stream, zero))
    normals = torch.stack((*_box_muller(w0, w1), *_box_muller(w2, w3)), dim=-1)
    return normals.flatten(1)[:, :num_elements].to(dtype)


def _signed(seed: int) -> int:
    # the same 64 bits as torch's int64
    return seed - 2**64 if seed >= 2**63 else seed


def _check_seed(name: str, seed: object) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {type(seed).__name__}")
    if not 0 <= seed <= _MAX_SEED:
        raise ValueError(f"{name} must be in [0, 2**64), got {seed}")
    return int(seed)


def seeds_from(seed: int | None, seeds: Sequence[int] | None, num_samples: int) -> list[int]:
    """One 64-bit seed per sample.

    `seeds` are taken as they are. From one `seed`, sample b gets the first two words of
    Philox(seed, (b, 0, 2, 0)), so that the batches of neighbouring seeds share no sample. With
    neither, torch's global generator supplies the seed.

    Raises:
        ValueError, TypeError: both given, the wrong number, or not integers in [0, 2**64).
    """
    if seed is not None and seeds is not None:
        raise ValueError("give either seed (one for the call) or seeds (one per sample), not both")
    if seeds is not None:
        listed = [_check_seed(f"seeds[{b}]", value) for b, value in enumerate(seeds)]
        if len(listed) != num_samples:
            raise ValueError(
                f"seeds must have one entry per sample: {num_samples}, got {len(listed)}"
            )
        return listed
    if seed is None:
        seed = int(torch.randint(2**63 - 1, ()))
    words = torch.tensor([_signed(_check_seed("seed", seed))])
    b = torch.arange(num_samples)
    zero = torch.zeros_like(b)
    key = (words & _MASK, (words >> 32) & _MASK)
    low, high, _, _ = philox_4x32(key, (b, zero, zero + STREAM_SEEDS, zero))
    return [h << 32 | w for w, h in zip(low.tolist(), high.tolist(), strict=True)]


class CounterNoise:
    """Philox noise with one 64-bit seed per sample."""

    def __init__(self, seeds: Sequence[int], num_elements: int, device: torch.device) -> None:
        signed = [_signed(seed) for seed in seeds]
        self._seeds = torch.tensor(signed, dtype=torch.int64, device=device)
        self._num_elements = num_elements

    def own(self) -> CounterNoise:
        """The same noise with a copy of the seeds, for `load` to overwrite."""
        other = copy(self)
        other._seeds = self._seeds.clone()
        return other

    def load(self, other: CounterNoise) -> None:
        """Take over as many seeds, in place."""
        self._seeds.copy_(other._seeds)

    def seeds(self, samples: torch.Tensor) -> torch.Tensor:
        """The 64 bits of each sample's seed, int64 [R]: what a kernel needs to make the noise."""
        return self._seeds[samples]

    def initial(self, samples: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Initial noise [R, D]."""
        nodes = torch.zeros_like(samples)
        return philox_normal(
            self._seeds[samples], nodes, self._num_elements, stream=STREAM_INITIAL, dtype=dtype
        )

    def step(self, nodes: torch.Tensor, samples: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Noise of steps [R, D]."""
        return philox_normal(self._seeds[samples], nodes, self._num_elements, dtype=dtype)


class TensorNoise:
    """Explicit step noise [N, B, D]; the initial noise still comes from `base`."""

    def __init__(self, noise: torch.Tensor, base: NoiseSource) -> None:
        self._noise = noise
        self._base = base

    def initial(self, samples: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Initial noise [R, D] of the base source."""
        return self._base.initial(samples, dtype)

    @property
    def tensor(self) -> torch.Tensor:
        """The noise [N, B, D] as it was given."""
        return self._noise

    def steps_of(self, sample: int, first: int, count: int) -> torch.Tensor:
        """The noise of nodes first .. first + count - 1 of one sample [count, D], not copied."""
        return self._noise[first : first + count, sample]

    def step(self, nodes: torch.Tensor, samples: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Rows of the given tensor."""
        return self._noise[nodes, samples].to(dtype)


class CallableNoise:
    """Step noise from `noise_fn(nodes [R], samples [R]) -> [R, *shape]`."""

    def __init__(
        self,
        noise_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        base: NoiseSource,
        shape: tuple[int, ...],
    ) -> None:
        self._noise_fn = noise_fn
        self._base = base
        self._shape = shape

    def initial(self, samples: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Initial noise [R, D] of the base source."""
        return self._base.initial(samples, dtype)

    def step(self, nodes: torch.Tensor, samples: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What the callable returns [R, D], checked.

        Raises:
            ValueError: it returned something else than a tensor [R, *shape].
        """
        z = self._noise_fn(nodes, samples)
        expected = (len(nodes), *self._shape)
        if not isinstance(z, torch.Tensor) or tuple(z.shape) != expected:
            got = tuple(z.shape) if isinstance(z, torch.Tensor) else type(z).__name__
            raise ValueError(
                f"noise(nodes, samples) must return a tensor {expected} = (rows, *shape), got {got}"
            )
        return z.reshape(len(nodes), -1).to(dtype)
