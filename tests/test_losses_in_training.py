"""The contrastive loss where it is used: split batches, processes, compilation, precisions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ctd_engine import _denoising, _rows, losses, schedules
from ctd_engine._contrast import Contrast
from ctd_engine.logsnr_distributions import TruncatedLogistic, Uniform
from ctd_engine.losses import ContrastiveDiffusionLoss
from gaussian_problem import contrast_points, wide_schedule

F64 = torch.float64


class Network(nn.Module):
    """A small network that is told the time."""

    def __init__(self, size: int = 3, dtype: torch.dtype = F64) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = nn.Linear(size + 1, 8), nn.Tanh(), nn.Linear(8, size)
        self.layers = nn.Sequential(*layers).to(dtype)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat([x, 1e-3 * t[:, None].to(x.dtype)], 1))
        return out


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_loss(**options: Any) -> ContrastiveDiffusionLoss:
    settings = {"contrastive_weight": 1.0, "num_draws": 2, "zeta": Uniform(-1.0, 5.0), **options}
    return ContrastiveDiffusionLoss(schedules.linear_beta(), **settings)


WHOLE = 20


def split_draws(monkeypatch: pytest.MonkeyPatch, first: int, part: int) -> None:
    """Draws for samples first .. first + part of a batch of WHOLE."""
    state = {"calls": 0}

    def cut(draw: Callable[[tuple[int, ...], torch.Generator], Tensor], *shape: int) -> Tensor:
        # one dimension counts samples or points: the first but for the pair of uniforms
        axis = 1 if shape[0] == 2 and len(shape) == 3 else 0
        whole = list(shape)
        whole[axis] = shape[axis] * WHOLE // part
        state["calls"] += 1
        values = draw(tuple(whole), seeded(state["calls"]))
        return values.narrow(axis, shape[axis] * first // part, shape[axis])

    def rand(*shape: Any, **_: Any) -> Tensor:
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        return cut(lambda s, g: _RAND(s, generator=g, dtype=F64), *shape)

    def randint(high: int, shape: tuple[int, ...], **_: Any) -> Tensor:
        return cut(lambda s, g: _RANDINT(high, s, generator=g), *shape)

    def normal(shape: tuple[int, ...], like: Tensor, generator: Any) -> Tensor:
        return cut(lambda s, g: torch.randn(s, generator=g, dtype=F64), *shape)

    monkeypatch.setattr(torch, "rand", rand)
    monkeypatch.setattr(torch, "randint", randint)
    for module in (_rows, _denoising, losses):
        monkeypatch.setattr(module, "draw_normal", normal)
    monkeypatch.setattr("ctd_engine._contrast.draw_normal", normal)


_RAND, _RANDINT = torch.rand, torch.randint


def gradients(network: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def batch() -> Tensor:
    return torch.randn(WHOLE, 3, generator=seeded(9), dtype=F64)


def whole_gradients(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Tensor, list[Tensor]]:
    network = Network()
    with monkeypatch.context() as patch:
        split_draws(patch, 0, WHOLE)
        value = make_loss(**options)(network, batch())
        value.backward()
    return value.detach(), gradients(network)


@pytest.mark.parametrize("common_random_numbers", [True, False])
def test_two_halves_equal_the_whole(
    common_random_numbers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"common_random_numbers": common_random_numbers}
    value, expected = whole_gradients(monkeypatch, **options)
    network, total = Network(), torch.zeros((), dtype=F64)
    for first in (0, WHOLE // 2):
        with monkeypatch.context() as patch:
            split_draws(patch, first, WHOLE // 2)
            half = make_loss(**options)(network, batch()[first : first + WHOLE // 2]) / 2
            half.backward()
        total += half.detach()
    torch.testing.assert_close(total, value)
    torch.testing.assert_close(gradients(network), expected)


def _train_half(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    # a process that waits for a lost one must fail, not hang
    limit = timedelta(seconds=60)
    store.set_timeout(limit)
    torch.distributed.init_process_group("gloo", None, limit, 2, rank, store)
    try:
        network = DistributedDataParallel(Network())
        with pytest.MonkeyPatch.context() as patch:
            split_draws(patch, rank * WHOLE // 2, WHOLE // 2)
            half = batch()[rank * WHOLE // 2 : (rank + 1) * WHOLE // 2]
            make_loss()(network, half).backward()
        torch.save(gradients(network), f"{folder}/{rank}.pt")
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = whole_gradients(monkeypatch)
    # the name of the machine need not resolve
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    children = torch.multiprocessing.spawn(_train_half, (str(tmp_path),), 2, join=False)
    limit = time.monotonic() + 120.0
    while not children.join(timeout=5.0):
        if time.monotonic() > limit:
            for process in children.processes:
                process.kill()
            pytest.fail("the two processes did not end within 120 s")
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)


def test_gradient_through_a_network() -> None:
    network, loss, x = Network(), make_loss(), batch()
    names = list(dict(network.named_parameters()))

    def total(*weights: Tensor) -> Tensor:
        model = dict(zip(names, weights, strict=True))
        return loss(
            lambda z, t: torch.func.functional_call(network, model, (z, t)),
            x,
            generator=seeded(1),
        )

    weights = tuple(p.detach().requires_grad_() for p in network.parameters())
    assert torch.autograd.gradcheck(total, weights)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "flow", "edm"])
def test_fused_and_reference_agree(prediction: str) -> None:
    if not torch.cuda.is_available():
        pytest.importorskip("triton")
    results = []
    for backend in ("triton", "reference"):
        network = Network()
        loss = make_loss(backend=backend, prediction=prediction, num_points=6)
        value = loss(network, batch(), generator=seeded(2))
        value.backward()
        results.append((value.detach(), gradients(network), loss.last["delta_mean"]))
    torch.testing.assert_close(results[0], results[1])


def test_compiled_model() -> None:
    results = []
    network = Network(dtype=torch.float32)
    for model in (network, torch.compile(network, backend="aot_eager")):
        network.zero_grad()
        value = make_loss()(model, batch().float(), generator=seeded(3))
        value.backward()
        results.append((value.detach(), gradients(network)))
    torch.testing.assert_close(results[0], results[1])


def test_autocast() -> None:
    network = Network(dtype=torch.float32)
    loss, values = make_loss(), []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = loss(network, batch().float(), generator=seeded(4))
        value.backward()
        assert value.dtype == torch.float32
        assert all(
            p.dtype == g.dtype
            for p, g in zip(network.parameters(), gradients(network), strict=True)
        )
        values.append(loss.last["denoising"])
    assert float(values[0]) != float(values[1])
    assert float(values[1]) == pytest.approx(float(values[0]), rel=0.02)


MEANS = torch.tensor([-2.0, 1.0], dtype=F64)
WEIGHTS = torch.tensor([0.3, 0.7], dtype=F64)
VARIANCE = 0.2


def log_mixture(z: Tensor, zeta: float) -> Tensor:
    """Log density of the one-dimensional mixture after noise of log-SNR zeta."""
    signal = torch.sigmoid(torch.tensor(zeta, dtype=F64))
    variance = signal * VARIANCE + 1.0 - signal
    square = (z - signal.sqrt() * MEANS) ** 2 / variance
    return (WEIGHTS.log() - 0.5 * (square + torch.log(2 * math.pi * variance))).logsumexp(1)


def mixture_model(x: Tensor, t: Tensor) -> Tensor:
    """Exact noise prediction, sigma times minus the score of the mixture."""
    signal, noise = torch.sigmoid(t)[:, None], torch.sigmoid(-t)[:, None]
    variance = signal * VARIANCE + noise
    away = x - signal.sqrt() * MEANS
    share = (WEIGHTS.log() - 0.5 * away**2 / variance).softmax(1)
    return noise.sqrt() * (share * away).sum(1, keepdim=True) / variance


@pytest.mark.parametrize("alpha_given_zeta", [False, True])
@pytest.mark.parametrize("zeta", [0.0, 3.0, 6.0])
def test_log_ratio_of_a_mixture_is_the_closed_form(zeta: float, alpha_given_zeta: bool) -> None:
    # at a mode, between the modes and far out
    z = torch.tensor([[-2.0], [-0.6], [3.0]], dtype=F64)
    rows = z.repeat_interleave(200_000, 0)
    contrast = Contrast(
        wide_schedule(),
        prediction="epsilon",
        time="logsnr",
        sigma_data=0.5,
        alpha=TruncatedLogistic(1.0, 2.0, clip=10.0),
    )
    _, delta = contrast_points(
        contrast,
        mixture_model,
        rows,
        torch.full((len(rows),), zeta, dtype=F64),
        torch.ones(len(rows)),
        1,
        seeded(6),
        alpha_given_zeta=alpha_given_zeta,
    )
    delta = delta.view(3, -1)
    error = delta.std(1) / math.sqrt(delta.shape[1])
    exact = log_mixture(z, zeta) - log_mixture(z, math.inf)
    assert float(((delta.mean(1) - exact) / error).abs().max()) < 4.0
    # the draws are enough to tell the value, not only to be consistent with it
    assert float((error / exact.abs().max()).max()) < 0.02
