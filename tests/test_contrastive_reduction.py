"""The contrastive reduction: its definition, its gradient, its refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ctd_engine.ops.contrastive_reduction import (
    contrastive_reduction,
    contrastive_reduction_reference,
)

SHAPES = [(1, 1, 1), (3, 1, 2), (2, 5, 7), (4, 3, 64), (1, 17, 33)]


def make_inputs(
    shape: tuple[int, int, int], dtype: torch.dtype = torch.float64, seed: int = 0
) -> dict[str, Tensor]:
    num_points, num_draws, _ = shape
    generator = torch.Generator().manual_seed(seed)
    normal = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name in ("eps", "out_alpha", "out_beta")
    }
    draws = torch.rand(2, num_points, num_draws, generator=generator, dtype=torch.float64)
    y = 1.0 - 2.0 * torch.randint(2, (num_points,), generator=generator)
    return {**normal, "weight": 0.1 + draws[0].to(dtype), "b": draws[1].to(dtype), "y": y.to(dtype)}


def by_loops(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The equation, number by number."""
    eps, weight, b, y = (inputs[name].tolist() for name in ("eps", "weight", "b", "y"))
    out_alpha, out_beta = inputs["out_alpha"].tolist(), inputs["out_beta"].tolist()
    losses, deltas = [], []
    for k in range(len(eps)):
        total = 0.0
        for n in range(len(eps[k])):
            beta = sum(
                (e - b[k][n] * o) ** 2 for e, o in zip(eps[k][n], out_beta[k][n], strict=True)
            )
            alpha = sum((e - o) ** 2 for e, o in zip(eps[k][n], out_alpha[k][n], strict=True))
            total += weight[k][n] * (beta - alpha)
        deltas.append(-0.5 * total / len(eps[k]))
        losses.append(math.log1p(math.exp(y[k] * deltas[-1])))
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(deltas, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_equation(shape: tuple[int, int, int]) -> None:
    inputs = make_inputs(shape)
    loss, delta = contrastive_reduction(**inputs)
    expected_loss, expected_delta = by_loops(inputs)
    torch.testing.assert_close(delta, expected_delta, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_arithmetic_is_at_least_fp32(dtype: torch.dtype) -> None:
    inputs = make_inputs((4, 3, 301), dtype)
    loss, delta = contrastive_reduction(**inputs)
    assert loss.dtype == delta.dtype == torch.float32
    exact = contrastive_reduction(**{name: value.double() for name, value in inputs.items()})
    torch.testing.assert_close(delta.double(), exact[1], rtol=2e-6, atol=2e-5)
    torch.testing.assert_close(loss.double(), exact[0], rtol=2e-6, atol=2e-5)


def test_nearly_equal_branches_keep_their_digits_in_fp32() -> None:
    inputs = make_inputs((8, 4, 3072))
    inputs["out_beta"] = inputs["out_alpha"] + 1e-4 * inputs["out_beta"]
    inputs["b"] = torch.ones_like(inputs["b"])
    inputs = {name: value.float() for name, value in inputs.items()}
    _, delta = contrastive_reduction(**inputs)
    _, exact = contrastive_reduction(**{name: value.double() for name, value in inputs.items()})
    # the plain difference of squares is wrong by about 1e-3 here
    assert float((delta - exact).abs().max()) < 3e-6


def test_gradients() -> None:
    inputs = make_inputs((3, 2, 5))
    for name in ("out_alpha", "out_beta"):
        inputs[name].requires_grad_()

    def function(out_alpha: Tensor, out_beta: Tensor) -> tuple[Tensor, Tensor]:
        return contrastive_reduction(**{**inputs, "out_alpha": out_alpha, "out_beta": out_beta})

    assert torch.autograd.gradcheck(function, (inputs["out_alpha"], inputs["out_beta"]))


def test_gradient_is_the_one_in_the_readme() -> None:
    inputs = make_inputs((4, 3, 6))
    a, o = inputs["out_alpha"].requires_grad_(), inputs["out_beta"].requires_grad_()
    loss, delta = contrastive_reduction(**inputs)
    (loss.sum() + 0.3 * delta.sum()).backward()
    y, b = inputs["y"], inputs["b"][..., None]
    s = y * torch.sigmoid(y * delta.detach()) + 0.3
    factor = s[:, None, None] * inputs["weight"][..., None] / 3
    assert a.grad is not None
    assert o.grad is not None
    torch.testing.assert_close(a.grad, -factor * (inputs["eps"] - a.detach()))
    torch.testing.assert_close(o.grad, factor * b * (inputs["eps"] - b * o.detach()))


def test_properties() -> None:
    inputs = make_inputs((5, 4, 6))
    loss, delta = contrastive_reduction(**inputs)
    flipped_loss, flipped_delta = contrastive_reduction(**{**inputs, "y": -inputs["y"]})
    assert torch.equal(delta, flipped_delta)
    # softplus(x) - softplus(-x) = x
    torch.testing.assert_close(loss - flipped_loss, inputs["y"] * delta)
    same = {**inputs, "out_beta": inputs["out_alpha"], "b": torch.ones_like(inputs["b"])}
    loss, delta = contrastive_reduction(**same)
    assert torch.equal(delta, torch.zeros_like(delta))
    torch.testing.assert_close(loss, torch.full_like(loss, math.log(2.0)))


def test_large_ratios_are_linear_not_infinite() -> None:
    inputs = make_inputs((2, 1, 1))
    inputs["weight"] = torch.full_like(inputs["weight"], 1e12)
    inputs["out_alpha"].requires_grad_()
    loss, delta = contrastive_reduction(**inputs)
    torch.testing.assert_close(loss, (inputs["y"] * delta).clamp_min(0.0))
    loss.sum().backward()
    assert inputs["out_alpha"].grad is not None
    assert bool(inputs["out_alpha"].grad.isfinite().all())


def test_nan_stays_with_its_point() -> None:
    inputs = make_inputs((3, 2, 4))
    inputs["out_alpha"][1, 0, 2] = math.nan
    loss, delta = contrastive_reduction(**inputs)
    assert loss.isnan().tolist() == delta.isnan().tolist() == [False, True, False]


def test_no_points() -> None:
    inputs = {name: value[:0] for name, value in make_inputs((2, 3, 4)).items()}
    loss, delta = contrastive_reduction(**inputs)
    assert loss.shape == delta.shape == (0,)


def test_strides_do_not_matter() -> None:
    inputs = make_inputs((4, 3, 6))
    strided = dict(inputs)
    strided["eps"] = inputs["eps"].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    strided["out_alpha"] = inputs["out_alpha"].repeat_interleave(2, 1)[:, ::2]
    strided["weight"] = inputs["weight"].T.contiguous().T
    expected, result = contrastive_reduction(**inputs), contrastive_reduction(**strided)
    torch.testing.assert_close(result, expected)


def test_bitwise_repeatable_and_backends() -> None:
    inputs = make_inputs((4, 3, 65), torch.float32)
    first = contrastive_reduction(**inputs)
    for other in (
        contrastive_reduction(**inputs),
        contrastive_reduction(**inputs, backend="reference"),
        contrastive_reduction_reference(**inputs),
    ):
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_integer_labels() -> None:
    inputs = make_inputs((4, 3, 5))
    integers = {**inputs, "y": inputs["y"].to(torch.int64)}
    assert torch.equal(contrastive_reduction(**integers)[0], contrastive_reduction(**inputs)[0])


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"eps": [[[0.0]]]}, TypeError, "eps must be a tensor, got list"),
        ({"b": torch.ones(2, 3, dtype=torch.int64)}, TypeError, "b must be a floating-point"),
        ({"y": torch.ones(2, dtype=torch.complex64)}, TypeError, "y must be a floating-point"),
        ({"eps": torch.zeros(2, 3, 2, 2)}, ValueError, r"eps must have 3 dimensions .*flatten"),
        ({"eps": torch.zeros(2, 0, 4)}, ValueError, "at least one draw per point"),
        ({"out_alpha": torch.zeros(2, 3, 5)}, ValueError, r"out_alpha must have shape \(2, 3, 4\)"),
        ({"out_beta": torch.zeros(2, 1, 4)}, ValueError, r"out_beta must have shape \(2, 3, 4\)"),
        ({"weight": torch.ones(2, 1)}, ValueError, r"weight must have shape \(2, 3\)"),
        ({"b": torch.ones(3, 2)}, ValueError, r"b must have shape \(2, 3\) = \[K, n\]"),
        ({"y": torch.ones(3)}, ValueError, r"y must have shape \(2,\) = \[K\]"),
        ({"y": torch.zeros(2)}, ValueError, r"y must hold only \+1 \(data\)"),
        ({"y": torch.ones(2, device="meta")}, ValueError, "y must be on the device of eps, cpu"),
        ({"backend": "cuda"}, ValueError, "backend must be None or one of"),
    ],
)
def test_rejects(change: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        contrastive_reduction(**{**make_inputs((2, 3, 4)), **change})
