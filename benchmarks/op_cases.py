"""The operations that are measured: one registry of cases, with their bytes and providers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ctd_engine.ops.contrastive_reduction import contrastive_reduction
from ctd_engine.ops.gather_rows import gather_rows
from ctd_engine.ops.picard_update import Coefficients, Windows, picard_update_

PROVIDERS = ("eager", "compile", "fused")


@dataclass(frozen=True)
class OpCase:
    """One operation at one size.

    `make(device, seed)` gives fresh inputs, `call(inputs, backend)` runs it and returns tensors to
    compare; `num_bytes` is what has to move through memory at the least.
    """

    name: str
    make: Callable[[str, int], dict]
    call: Callable[[dict, str], tuple[torch.Tensor, ...]]
    num_bytes: int


def _picard_inputs(device, seed, *, num_windows, length, num_elements, m_dtype):
    generator = torch.Generator(device).manual_seed(seed)
    randn = partial(torch.randn, generator=generator, device=device)
    ring, nodes = length + 1, 1000
    x = randn(num_windows, ring, num_elements)
    a = torch.full((nodes, 1), 0.99, device=device)
    vector = torch.full((nodes,), 0.1, device=device)
    index = torch.arange(num_windows, device=device)
    rows = torch.arange(num_windows * length, device=device)
    start = 17 * index
    entry, offset = rows // length, rows % length
    return {
        "x": x,
        "x0": torch.zeros_like(x),
        "m": randn(len(rows), num_elements).to(m_dtype),
        "windows": Windows(
            slot=index,
            start=start,
            length=torch.full_like(index, length),
            first_row=index * length,
            row_slot=entry,
            row_node=start[entry] + offset,
            row_entry=entry,
            row_offset=offset,
            max_length=length,
        ),
        "coefficients": Coefficients(
            a, a * 0.01, vector, torch.ones_like(a), vector, -vector, clip=None
        ),
        "seeds": index + 5,
    }


def _picard_call(inputs, backend):
    sums = picard_update_(**inputs, backend=backend)
    return inputs["x"], inputs["x0"], sums.sum(2)


def _picard_case(name, num_windows, length, num_elements, m_dtype=torch.float32):
    points = num_windows * length * num_elements
    return OpCase(
        f"picard_update {name}",
        partial(
            _picard_inputs,
            num_windows=num_windows,
            length=length,
            num_elements=num_elements,
            m_dtype=m_dtype,
        ),
        _picard_call,
        # x read and written, x0 written, m read; noise is made in registers
        points * (4 + 4 + 4 + torch.finfo(m_dtype).bits // 8),
    )


def _contrastive_inputs(device, seed, *, shape, dtype):
    generator = torch.Generator(device).manual_seed(seed)
    randn = partial(torch.randn, generator=generator, device=device)
    return {
        "eps": randn(shape),
        "out_alpha": randn(shape).to(dtype).requires_grad_(),
        "out_beta": randn(shape).to(dtype).requires_grad_(),
        "weight": torch.full(shape[:2], 0.5, device=device),
        "b": torch.full(shape[:2], 0.9, device=device),
        "y": torch.where(torch.arange(shape[0], device=device) % 2 == 0, 1.0, -1.0),
    }


def _contrastive_call(inputs, backend):
    loss, delta = contrastive_reduction(**inputs, backend=backend)
    outputs = inputs["out_alpha"], inputs["out_beta"]
    return loss.detach(), delta.detach(), *torch.autograd.grad(loss.mean(), outputs)


def _contrastive_case(name, shape, dtype=torch.float32):
    numel = shape[0] * shape[1] * shape[2]
    size = torch.finfo(dtype).bits // 8
    return OpCase(
        f"contrastive_reduction {name}",
        partial(_contrastive_inputs, shape=shape, dtype=dtype),
        _contrastive_call,
        # forward and backward each read eps and both outputs; two gradients are written
        numel * (2 * (4 + 2 * size) + 2 * size),
    )


def _gather_inputs(device, seed, *, num_windows, length, num_elements, dtype):
    inputs = _picard_inputs(
        device,
        seed,
        num_windows=num_windows,
        length=length,
        num_elements=num_elements,
        m_dtype=torch.float32,
    )
    windows, vector = inputs["windows"], inputs["coefficients"].P
    return {
        "x": inputs["x"],
        "row_slot": windows.row_slot,
        "row_node": windows.row_node,
        "input_scale": vector,
        "model_time": vector,
        "dtype": dtype,
    }


def _gather_case(name, num_windows, length, num_elements, dtype=torch.float16):
    return OpCase(
        f"gather_rows {name}",
        partial(
            _gather_inputs,
            num_windows=num_windows,
            length=length,
            num_elements=num_elements,
            dtype=dtype,
        ),
        lambda inputs, backend: gather_rows(**inputs, backend=backend),
        num_windows * length * num_elements * (4 + torch.finfo(dtype).bits // 8),
    )


SMALL = (
    _picard_case("16 windows of 32, 8x8", 16, 32, 64),
    _gather_case("16 windows of 32, 8x8", 16, 32, 64),
    _contrastive_case("128 points, 1 draw, 3x32x32", (128, 1, 3072)),
)
# beyond the second-level cache of an H200 (50 MB)
LARGE = (
    _picard_case("16 windows of 32, 4x128x128", 16, 32, 65536),
    _picard_case("16 windows of 32, 4x128x128, bf16 model", 16, 32, 65536, torch.bfloat16),
    _picard_case("4 windows of 32, 3x256x256", 4, 32, 196608),
    _picard_case("512 windows of 32, 8x8", 512, 32, 64),
    _gather_case("16 windows of 32, 4x128x128", 16, 32, 65536),
    _contrastive_case("128 points, 8 draws, 3x64x64", (128, 8, 12288)),
    _contrastive_case("128 points, 8 draws, 3x64x64, bf16", (128, 8, 12288), torch.bfloat16),
)


def provider_call(case: OpCase, provider: str) -> Callable[[dict], tuple[torch.Tensor, ...]]:
    """The case's function as a provider runs it: fused, the plain reference, or that compiled."""
    if provider == "fused":
        return lambda inputs: case.call(inputs, "triton")
    plain = partial(case.call, backend="reference")
    return torch.compile(plain) if provider == "compile" else plain


def is_correct(case: OpCase, provider: str, device: str) -> bool:
    """Whether a provider gives the reference's numbers; one that does not gets no time."""
    got = provider_call(case, provider)(case.make(device, 0))
    want = case.call(case.make(device, 0), "reference")
    return all(
        torch.allclose(g.double(), w.double(), rtol=2e-2, atol=1e-3 * float(w.abs().max() + 1e-6))
        if g.dtype in (torch.float16, torch.bfloat16)
        else torch.allclose(g.double(), w.double(), rtol=1e-3, atol=1e-4 * float(w.abs().max()))
        for g, w in zip(got, want, strict=True)
    )
