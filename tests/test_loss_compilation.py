"""The contrastive loss with compiled models, compiled itself, and under autocast."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from ctd_engine import schedules
from ctd_engine.logsnr_distributions import Uniform
from ctd_engine.losses import ContrastiveDiffusionLoss, DenoisingLoss
from training_problem import Network, batch, gradients, make_loss


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(step: Callable[[Tensor], Tensor], network: Network) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients of a step whose random numbers come from the global generator."""
    torch.manual_seed(3)
    network.zero_grad()
    value = step(batch().float())
    value.backward()
    return value.detach(), gradients(network)


def test_compiled_model_is_one_graph_compiled_once() -> None:
    network, loss = Network(dtype=torch.float32), make_loss()
    expected = run(lambda x: loss(network, x), network)
    counter = CompileCounterWithBackend("aot_eager")
    model = torch.compile(network, backend=counter, fullgraph=True)
    for _ in range(3):
        torch.testing.assert_close(run(lambda x: loss(model, x), network), expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("contrastive", "kind", "prediction"),
    [
        (True, "vp", "epsilon"),
        (True, "ve", "edm"),
        (True, "flow", "flow"),
        (False, "vp", "x0"),
    ],
)
def test_a_whole_step_compiles_without_a_graph_break(
    contrastive: bool, kind: str, prediction: str
) -> None:
    make = {"vp": schedules.linear_beta, "ve": schedules.karras, "flow": schedules.flow}[kind]
    loss: Any = DenoisingLoss(make(), prediction=prediction)
    if contrastive:
        options = {"prediction": prediction, "contrastive_weight": 1.0, "num_points": 10}
        loss = ContrastiveDiffusionLoss(make(), zeta=Uniform(-1.0, 5.0), **options)
    network = Network(dtype=torch.float32)
    expected = run(lambda x: loss(network, x), network)
    parts = dict(loss.last)
    counter = CompileCounterWithBackend("aot_eager")
    # fullgraph refuses any break
    step = torch.compile(lambda x: loss(network, x), backend=counter, fullgraph=True)
    torch.testing.assert_close(run(step, network), expected)
    torch.testing.assert_close(loss.last, parts)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_a_whole_step_compiles_with_inductor(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not there")
    # a process of its own: with a limit, without the compiler's caches of this one
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", INDUCTOR],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # the model's and the loss's kernels were made
    assert list(tmp_path.rglob("*.so")), done.stdout


INDUCTOR = """
import torch

from training_problem import Network, make_loss
from test_loss_compilation import run

torch.set_num_threads(1)
# the random numbers of eager code, in place of inductor's own
torch._inductor.config.fallback_random = True
network, loss = Network(dtype=torch.float32), make_loss()
expected = run(lambda x: loss(network, x), network)
step = torch.compile(lambda x: loss(network, x), backend="inductor", fullgraph=True)
torch.testing.assert_close(run(step, network), expected)
"""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_reaches_the_model_and_nothing_else(dtype: torch.dtype) -> None:
    network, loss = Network(dtype=torch.float32), make_loss()
    seen: list[torch.dtype] = []
    network.layers[0].register_forward_hook(lambda *arguments: seen.append(arguments[2].dtype))

    def cast(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            out: Tensor = network(x, t)
        return out.float()

    # the loss in full precision around a model in half precision
    expected = run(lambda x: loss(cast, x), network)
    parts = dict(loss.last)

    def step(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            return loss(network, x)

    value, grads = run(step, network)
    assert seen == [dtype, dtype]
    assert value.dtype == torch.float32
    torch.testing.assert_close((value, grads, loss.last), (*expected, parts), rtol=0.0, atol=0.0)
    # and half precision is near the whole truth
    exact, exact_grads = run(lambda x: loss(network, x), network)
    assert value != exact
    torch.testing.assert_close(value, exact, rtol=0.02, atol=0.0)
    for ours, theirs in zip(grads, exact_grads, strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm()) < 0.05
