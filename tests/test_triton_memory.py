"""No kernel touches memory beside its arguments, even where what it reads is then masked away."""

from __future__ import annotations

import pytest
import torch

from ctd_engine.ops._dispatch import triton_unavailable_reason, uses_interpreter
from ctd_engine.ops._tuning import Blocks
from ctd_engine.ops.gather_rows import gather_rows
from ctd_engine.ops.picard_update import Coefficients
from ctd_engine.ops.predict_guess import predict_guess_
from ctd_engine.ops.trajectory_error import trajectory_error
from ctd_engine.ops.turn_over import turn_over_
from ctd_engine.scheduling.plan import CONVERGED, DIVERGED, MAX_ROUNDS
from ragged_problem import NUM_NODES, guarded, problem

if triton_unavailable_reason() is not None:
    pytest.skip(f"no Triton: {triton_unavailable_reason()}", allow_module_level=True)
if not uses_interpreter():
    pytest.skip("addresses can be seen in the interpreter only", allow_module_level=True)

import triton
import triton.language as tl

from ctd_engine.ops.contrastive_reduction import kernel as contrastive
from ctd_engine.ops.picard_update.kernel import launch
from memory_bounds import only_elements_of_the_arguments

WALK, TILE = Blocks(0, 4, 1), Blocks(8, 4, 1)
SEEDS = guarded(torch.tensor([5, -7, 2**62, 0]))


@triton.jit
def _copy_kernel(out_ptr, in_ptr, num_read, num_written, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(in_ptr + i, mask=i < num_read), mask=i < num_written)


@pytest.mark.parametrize(("more_read", "more_written"), [(0, 0), (1, 0), (0, 1)])
def test_the_check_sees_one_element_too_many(more_read, more_written):
    given, out = guarded(torch.ones(5)), guarded(torch.zeros(5))
    with only_elements_of_the_arguments() as counts:
        if more_read or more_written:
            which = "load" if more_read else "store"
            with pytest.raises(Exception, match=f"{which} of 1 addresses outside"):
                _copy_kernel[(1,)](out, given, 5 + more_read, 5 + more_written, BLOCK=8)
        else:
            _copy_kernel[(1,)](out, given, 5, 5, BLOCK=8)
            assert counts == {"load": 5, "store": 5}


@pytest.mark.parametrize("noise", ["none", "given", "counter"])
@pytest.mark.parametrize("blocks", [WALK, TILE], ids=["walk", "tile"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_update(order, blocks, noise):
    """The last window ends at the last node: a tile's spare rows lie beyond every table."""
    c, x, x0, windows, m, z = problem(order, 7, torch.float32)
    if blocks.length:
        g = guarded(torch.cat([c.G[:, :1], torch.zeros_like(c.G[:, 1:])], dim=1))
        c = Coefficients(c.A, c.B, c.C, g, c.P, c.Q, 0.5)
    with only_elements_of_the_arguments() as counts:
        launch(
            x,
            x0,
            m,
            windows,
            c,
            z=z if noise == "given" else None,
            seeds=SEEDS if noise == "counter" else None,
            m_null=guarded(m * 0.5),
            guidance_scale=2.0,
            blocks=blocks,
        )
    assert counts["store"] > 2 * m.numel()


@pytest.mark.parametrize("noise", ["none", "given", "counter"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_guess(order, noise):
    """From the first node, in the middle, and to the last node."""
    c, x, x0, _, _, _ = problem(order, 7, torch.float32)
    indices = ([1, 3, 4, 0], [0, 2, NUM_NODES - 2, 9], [1, 4, 2, 0])
    slot, known, count = (guarded(torch.tensor(values)) for values in indices)
    z = guarded(torch.zeros(4, 4, 7))
    with only_elements_of_the_arguments() as counts:
        predict_guess_(
            x,
            x0,
            slot,
            known,
            count,
            4,
            c,
            z=z if noise == "given" else None,
            seeds=SEEDS if noise == "counter" else None,
            backend="triton",
        )
    assert counts["store"] == 7 * int(count.sum())


def test_gather():
    _, x, _, windows, _, _ = problem(1, 7, torch.float32)
    scale, times = guarded(torch.ones(NUM_NODES)), guarded(torch.arange(float(NUM_NODES)))
    with only_elements_of_the_arguments() as counts:
        gather_rows(
            x, windows.row_slot, windows.row_node, scale, times, torch.float16, backend="triton"
        )
    assert counts["store"] == 8 * len(windows.row_slot)


def test_turn_over():
    """A sample that converged, one whose rounds ran out, one that diverged, and two new ones."""
    _, x, x0, _, _, _ = problem(1, 7, torch.float32)
    samples = guarded(torch.ones(6, 7))
    columns = (
        [0, 3, 5, -1, -1],
        [CONVERGED, MAX_ROUNDS, DIVERGED, -1, -1],
        [NUM_NODES, 4, 2, 0, 0],
        [1, -1, -1, 2, -1],
    )
    with only_elements_of_the_arguments() as counts:
        turn_over_(
            x,
            x0,
            samples,
            *(guarded(torch.tensor(c)) for c in columns),
            NUM_NODES,
            backend="triton",
        )
    assert counts["store"] == 5 * 7


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_error_check(num_blocks):
    _, _, _, windows, _, _ = problem(1, 7, torch.float32)
    partials = guarded(torch.ones(4, windows.max_length, num_blocks))
    threshold = guarded(torch.ones(NUM_NODES + 1))
    with only_elements_of_the_arguments() as counts:
        trajectory_error(partials, 7, threshold, windows.start, windows.length, backend="triton")
    assert counts["store"] == 2 * 4


@pytest.mark.parametrize("shape", [(2, 3, 7), (1, 1, 3001), (3, 2, 512)], ids=str)
def test_contrastive_reduction(shape):
    eps, out_alpha, out_beta = (guarded(torch.ones(shape)) for _ in range(3))
    weight, b = (guarded(torch.ones(shape[:2])) for _ in range(2))
    y, grad, other_grad = (guarded(torch.ones(shape[:1])) for _ in range(3))
    inputs = (eps, out_alpha, out_beta, weight, b, y)
    with only_elements_of_the_arguments() as counts:
        _, delta = contrastive.forward(*inputs, torch.float32)
        forward = counts["load"]
        assert forward >= 3 * eps.numel()
        contrastive.backward(grad, other_grad, guarded(delta), *inputs, True, True)
        assert counts["load"] - forward >= 3 * eps.numel()
    assert counts["store"] >= 2 * eps.numel()
