"""The fused contrastive reduction: in the interpreter, or on a GPU."""

from __future__ import annotations

import math

import pytest
import torch

from closeness import assert_close_to_reference
from ctd_engine import ContrastiveDiffusionLoss, schedules
from ctd_engine.ops._dispatch import triton_unavailable_reason
from ctd_engine.ops._tuning import ceil_div, reduction_blocks
from ctd_engine.ops.contrastive_reduction import contrastive_reduction

if triton_unavailable_reason() is not None:
    pytest.skip(f"no Triton: {triton_unavailable_reason()}", allow_module_level=True)

from ctd_engine.ops.contrastive_reduction.fused import contrastive_reduction_fused

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
NAMES = ("eps", "out_alpha", "out_beta", "weight", "b", "y")
SHAPES = [(1, 1, 1), (3, 1, 2), (2, 5, 7), (4, 3, 64), (2, 2, 513), (1, 1, 3001), (300, 1, 5)]
# two parts for each point and draw, of two blocks and of one
SHAPES += [(64, 4, 3072)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def make_inputs(shape, dtype=torch.float64, seed=0):
    num_points, num_draws, _ = shape
    generator = torch.Generator().manual_seed(seed)
    eps, out_alpha, out_beta = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    weight, b = torch.rand(2, num_points, num_draws, generator=generator, dtype=torch.float64)
    y = 1.0 - 2.0 * torch.randint(2, (num_points,), generator=generator)
    working = torch.promote_types(dtype, torch.float32)
    tensors = (
        # the noise stays in full precision, as in the loss
        eps.to(working),
        out_alpha.to(dtype),
        out_beta.to(dtype),
        (0.1 + weight).to(working),
        b.to(working),
        y.to(working),
    )
    return {name: t.to(DEVICE) for name, t in zip(NAMES, tensors, strict=True)}


def with_gradients(inputs, backend):
    """loss, delta and both gradients of a weighted sum of them."""
    leaves = {
        name: t.detach().clone().requires_grad_(name.startswith("out"))
        for name, t in inputs.items()
    }
    loss, delta = contrastive_reduction(**leaves, backend=backend)
    weights = torch.linspace(0.5, 1.5, len(loss), dtype=loss.dtype, device=DEVICE)
    ((weights * loss).sum() + 0.3 * (weights.flip(0) * delta).sum()).backward()
    return loss.detach(), delta.detach(), leaves["out_alpha"].grad, leaves["out_beta"].grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape, dtype):
    inputs = make_inputs(shape, dtype)
    fused = with_gradients(inputs, "triton")
    plain = with_gradients(inputs, "reference")
    exact = with_gradients({n: t.double() for n, t in inputs.items()}, "reference")
    for i, (f, p, e) in enumerate(zip(fused, plain, exact, strict=True)):
        assert f.dtype == p.dtype
        assert_close_to_reference(f, p, e, factor=2.0 if i < 2 else 3.0)


def test_one_shape_has_parts_of_several_blocks():
    parts, blocks = reduction_blocks(64 * 4, 3072)
    assert 1 < parts < ceil_div(3072, blocks.elements)


@pytest.mark.parametrize("shape", [(2, 3, 5), (3, 1, 1)], ids=str)
def test_gradcheck(shape):
    inputs = make_inputs(shape)
    for name in ("out_alpha", "out_beta"):
        inputs[name].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: contrastive_reduction(
            **{**inputs, "out_alpha": a, "out_beta": b}, backend="triton"
        ),
        (inputs["out_alpha"], inputs["out_beta"]),
    )


@pytest.mark.parametrize("wanted", ["out_alpha", "out_beta"])
def test_only_one_output_needs_a_gradient(wanted):
    grads = []
    for backend in ("triton", "reference"):
        inputs = make_inputs((2, 3, 5))
        inputs[wanted].requires_grad_()
        loss, _ = contrastive_reduction(**inputs, backend=backend)
        loss.sum().backward()
        grads.append(inputs[wanted].grad)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_only_delta_is_used_and_backward_runs_twice():
    inputs = make_inputs((2, 3, 5))
    inputs["out_beta"].requires_grad_()
    _, delta = contrastive_reduction(**inputs, backend="triton")
    delta.sum().backward(retain_graph=True)
    once = inputs["out_beta"].grad.clone()
    delta.sum().backward()
    torch.testing.assert_close(inputs["out_beta"].grad, 2.0 * once)


def test_strides_of_every_kind():
    """Each tensor is laid out differently, in buffers of NaN."""
    inputs = make_inputs((3, 2, 6))
    plain = with_gradients(inputs, "reference")

    def inside(t, extra):
        wide = t.new_full((*t.shape[:-1], t.shape[-1] + extra), math.nan)
        wide[..., : t.shape[-1]] = t
        return wide[..., : t.shape[-1]]

    laid_out = {
        "eps": inside(inputs["eps"], 3),
        "out_alpha": inputs["out_alpha"].permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "out_beta": inputs["out_beta"][:, :1].expand(3, 2, 6),
        "weight": inputs["weight"].T.contiguous().T,
        "b": inside(inputs["b"], 2),
        "y": torch.stack([inputs["y"], inputs["y"]], 1)[:, 0],
    }
    plain = contrastive_reduction(**{n: t.contiguous() for n, t in laid_out.items()})
    fused = contrastive_reduction(**laid_out, backend="triton")
    for f, p in zip(fused, plain, strict=True):
        torch.testing.assert_close(f, p, rtol=1e-12, atol=1e-12)


def test_empty_batch():
    inputs = make_inputs((0, 2, 5))
    inputs["out_alpha"].requires_grad_()
    loss, delta = contrastive_reduction(**inputs, backend="triton")
    assert loss.shape == delta.shape == (0,)
    loss.sum().backward()
    assert inputs["out_alpha"].grad.shape == (0, 2, 5)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_stay_in_their_point(bad):
    inputs = make_inputs((3, 2, 5))
    inputs["out_alpha"][1, 0, 3] = bad
    loss, delta = contrastive_reduction(**inputs, backend="triton")
    assert not torch.isfinite(delta[1])
    assert torch.isfinite(loss[[0, 2]]).all()
    assert torch.isfinite(delta[[0, 2]]).all()


def test_extreme_log_ratios():
    """softplus neither overflows nor loses its small values."""
    inputs = make_inputs((4, 1, 8), torch.float32)
    inputs["weight"] = torch.tensor([[1e3], [1e3], [1e-6], [1e4]], device=DEVICE)
    inputs["y"] = torch.tensor([1.0, -1.0, 1.0, -1.0], device=DEVICE)
    fused = with_gradients(inputs, "triton")
    plain = with_gradients(inputs, "reference")
    for f, p in zip(fused, plain, strict=True):
        torch.testing.assert_close(f, p, rtol=1e-5, atol=1e-30)


def test_bitwise_repeatable():
    inputs = make_inputs((2, 2, 1500), torch.float32)
    for one, other in zip(*(with_gradients(inputs, "triton") for _ in range(2)), strict=True):
        assert torch.equal(one, other)


def test_opcheck():
    inputs = make_inputs((2, 3, 5))
    for name in ("out_alpha", "out_beta"):
        inputs[name].requires_grad_()
    torch.library.opcheck(contrastive_reduction_fused, tuple(inputs.values()))


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_under_torch_compile(backend):
    """The public function is one graph without a break, forward and backward."""
    inputs = make_inputs((2, 3, 5), torch.float32)

    def total(out_alpha):
        loss, delta = contrastive_reduction(**{**inputs, "out_alpha": out_alpha}, backend=backend)
        return loss.sum() + delta.sum()

    grads = []
    for fn in (total, torch.compile(total, backend="aot_eager", fullgraph=True)):
        leaf = inputs["out_alpha"].detach().clone().requires_grad_()
        fn(leaf).backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("name", ["eps", "weight", "b"])
def test_refuses_a_gradient_that_it_does_not_have(name):
    inputs = make_inputs((2, 3, 5))
    inputs[name].requires_grad_()
    with pytest.raises(RuntimeError, match="gradients for out_alpha and out_beta only"):
        contrastive_reduction(**inputs, backend="triton")
    # unnamed, the reference has it
    contrastive_reduction(**inputs)[0].sum().backward()
    assert inputs[name].grad is not None


def test_the_loss_trains_the_same_with_it():
    """ContrastiveDiffusionLoss with backend="triton": the same value and gradients."""
    results = []
    for backend in ("triton", "reference"):
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 4).to(DEVICE)
        loss_fn = ContrastiveDiffusionLoss(
            schedules.linear_beta(), contrastive_weight=1.0, num_draws=2, backend=backend
        )
        generator = torch.Generator().manual_seed(1)
        loss = loss_fn(
            lambda x, t, net=layer: net(x), torch.ones(8, 4, device=DEVICE), generator=generator
        )
        loss.backward()
        results.append((loss.detach(), layer.weight.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
