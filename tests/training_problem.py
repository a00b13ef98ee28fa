"""A small network, a loss and a batch that the tests of the losses in training share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctd_engine import _contrast, _denoising, _rows, losses, schedules
from ctd_engine.logsnr_distributions import Uniform
from ctd_engine.losses import ContrastiveDiffusionLoss

F64 = torch.float64
WHOLE = 20
_RAND, _RANDINT = torch.rand, torch.randint


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
    settings: dict[str, Any] = {"contrastive_weight": 1.0, "num_points": 2, "num_draws": 2}
    settings.update(zeta=Uniform(-1.0, 5.0), **options)
    return ContrastiveDiffusionLoss(schedules.linear_beta(), **settings)


def gradients(network: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def batch() -> Tensor:
    return torch.randn(WHOLE, 3, generator=seeded(9), dtype=F64)


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
    for module in (_contrast, _denoising, _rows, losses):
        monkeypatch.setattr(module, "draw_normal", normal)


def whole_gradients(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Tensor, list[Tensor]]:
    network = Network()
    with monkeypatch.context() as patch:
        split_draws(patch, 0, WHOLE)
        value = make_loss(**options)(network, batch())
        value.backward()
    return value.detach(), gradients(network)
