"""The operations that are measured: one registry of cases, with their bytes and providers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ctd_engine.ops.contrastive_reduction import contrastive_reduction
from ctd_engine.ops.gather_rows import gather_rows
from ctd_engine.ops.picard_update import picard_update_
from ctd_engine.ops.predict_guess import predict_guess_
from ctd_engine.ops.secant_slopes import secant_slopes
from ctd_engine.ops.trajectory_error import trajectory_error
from op_inputs import (
    SUMMED,
    contrastive_inputs,
    error_inputs,
    gather_inputs,
    guess_inputs,
    picard_inputs,
    secant_inputs,
)

PROVIDERS = ("eager", "compile", "fused")
CPU_PROVIDERS = ("eager", "compile", "cpp")
BACKENDS = {"eager": "reference", "compile": "reference", "fused": "triton", "cpp": "cpp"}

Tensors = tuple[torch.Tensor, ...]


def _call(op: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    return op(**inputs)


def _all_results(inputs: dict[str, Any], results: Any) -> Tensors:
    return tuple(results)


@dataclass(frozen=True)
class OpCase:
    """One operation at one size.

    `make(device, seed)` gives fresh inputs; with `num_elements=` the same case with another D, so
    that its indices can be checked without its memory. `call(op, inputs)` is what is timed, and
    `outputs(inputs, results)` the tensors to compare, whose making is not. `num_bytes` is what has
    to move through memory at the least.
    """

    name: str
    op: Callable[..., Any]
    make: Callable[..., dict[str, Any]]
    num_bytes: int
    call: Callable[[Callable[..., Any], dict[str, Any]], Any] = _call
    outputs: Callable[[dict[str, Any], Any], Tensors] = _all_results

    @property
    def has_cpp(self) -> bool:
        """Whether the operation has a C++ kernel: those of a sampler's rounds have."""
        return self.op is not contrastive_reduction


def _picard_outputs(inputs, sums):
    return inputs["x"], inputs["x0"], sums.sum(2)


def _picard_case(name, num_windows, length, num_elements, m_dtype=torch.float32):
    size = dict(num_windows=num_windows, length=length, num_elements=num_elements)
    return OpCase(
        f"picard_update {name}",
        picard_update_,
        partial(picard_inputs, **size, m_dtype=m_dtype),
        # x read and written, x0 written, m read; noise is made in registers
        num_windows * length * num_elements * (4 + 4 + 4 + m_dtype.itemsize),
        outputs=_picard_outputs,
    )


def _secant_case(name, num_windows, length, num_elements, m_dtype=torch.float32):
    size = dict(num_windows=num_windows, length=length, num_elements=num_elements)
    return OpCase(
        f"secant_slopes {name}",
        secant_slopes,
        partial(secant_inputs, **size, m_dtype=m_dtype),
        # x, x0, change and m read; a number per row written
        num_windows * length * (num_elements * (4 + 4 + 4 + m_dtype.itemsize) + 4),
        outputs=lambda _, slopes: (slopes,),
    )


def _guess_case(name, num_windows, length, num_elements):
    size = dict(num_windows=num_windows, length=length, num_elements=num_elements)
    return OpCase(
        f"predict_guess {name}",
        predict_guess_,
        partial(guess_inputs, **size),
        # one state and one held x0 are read, every new point is written
        num_windows * (length + 2) * num_elements * 4,
        outputs=lambda inputs, _: (inputs["x"],),
    )


def _error_case(name, num_windows, length, num_elements):
    size = dict(num_windows=num_windows, length=length, num_elements=num_elements)
    return OpCase(
        f"trajectory_error {name}",
        trajectory_error,
        partial(error_inputs, **size),
        # partial sums and a threshold per point are read; four int64 go along with each window
        num_windows * (length * (-(-num_elements // SUMMED) + 1) * 4 + 4 * 8),
    )


def _contrastive_call(op, inputs):
    loss, delta = op(**inputs)
    outputs = inputs["out_alpha"], inputs["out_beta"]
    return loss.detach(), delta.detach(), *torch.autograd.grad(loss.mean(), outputs)


def _contrastive_case(name, num_points, num_draws, num_elements, dtype=torch.float32):
    shape = dict(num_points=num_points, num_draws=num_draws, num_elements=num_elements)
    return OpCase(
        f"contrastive_reduction {name}",
        contrastive_reduction,
        partial(contrastive_inputs, **shape, dtype=dtype),
        # forward and backward each read eps and both outputs; two gradients are written
        num_points * num_draws * num_elements * (2 * (4 + 2 * dtype.itemsize) + 2 * dtype.itemsize),
        call=_contrastive_call,
    )


def _gather_case(name, num_windows, length, num_elements, dtype=torch.float16):
    size = dict(num_windows=num_windows, length=length, num_elements=num_elements)
    return OpCase(
        f"gather_rows {name}",
        gather_rows,
        partial(gather_inputs, **size, dtype=dtype),
        num_windows * length * num_elements * (4 + dtype.itemsize),
    )


# the second-level cache of an H100 or H200
L2_BYTES = 50e6
SMALL = (
    _picard_case("16 windows of 32, 8x8", 16, 32, 64),
    _secant_case("16 windows of 32, 8x8", 16, 32, 64),
    _guess_case("16 windows of 8, 8x8", 16, 8, 64),
    _gather_case("16 windows of 32, 8x8", 16, 32, 64),
    _error_case("16 windows of 32, 8x8", 16, 32, 64),
    # partial sums are a five-hundredth of the states: in practice they never leave the cache
    _error_case("16 windows of 32, 4x128x128", 16, 32, 65536),
    _contrastive_case("128 points, 1 draw, 3x32x32", 128, 1, 3072),
)
# beyond the cache
LARGE = (
    _picard_case("16 windows of 32, 4x128x128", 16, 32, 65536),
    _picard_case("16 windows of 32, 4x128x128, bf16 model", 16, 32, 65536, torch.bfloat16),
    _picard_case("4 windows of 32, 3x256x256", 4, 32, 196608),
    _picard_case("4096 windows of 32, 8x8", 4096, 32, 64),
    _secant_case("16 windows of 32, 4x128x128", 16, 32, 65536),
    _guess_case("16 windows of 16, 4x128x128", 16, 16, 65536),
    _gather_case("16 windows of 32, 4x128x128", 16, 32, 65536),
    _contrastive_case("128 points, 8 draws, 3x64x64", 128, 8, 12288),
    _contrastive_case("128 points, 8 draws, 3x64x64, bf16", 128, 8, 12288, torch.bfloat16),
)


def provider_call(case: OpCase, provider: str) -> Callable[[dict[str, Any]], Any]:
    """The case's call as a provider runs it: on a kernel, the plain reference, or that compiled.

    Compiled is for this case's shapes alone. Cases share their code, so that what was compiled for
    another one is forgotten first: it would make this one dynamic. A break in the graph or too many
    recompilations raise, where torch would quietly go on eagerly.
    """
    op = partial(case.op, backend=BACKENDS[provider])
    if provider == "compile":
        torch._dynamo.reset()
        op = torch.compile(op, dynamic=False, fullgraph=True)
    return partial(case.call, op)


def is_correct(case: OpCase, call: Callable[[dict[str, Any]], Any], device: str) -> bool:
    """Whether a provider's call gives the reference's numbers; one that does not gets no time."""
    mine, theirs = case.make(device, 0), case.make(device, 0)
    got = case.outputs(mine, call(mine))
    want = case.outputs(theirs, provider_call(case, "eager")(theirs))
    return all(
        torch.allclose(g.double(), w.double(), rtol=2e-2, atol=1e-3 * float(w.abs().max() + 1e-6))
        if g.dtype in (torch.float16, torch.bfloat16)
        else torch.allclose(g.double(), w.double(), rtol=1e-3, atol=1e-4 * float(w.abs().max()))
        for g, w in zip(got, want, strict=True)
    )
