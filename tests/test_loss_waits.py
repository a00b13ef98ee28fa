"""A training step never waits for its device: nothing is copied to it or read from it.

The device is "meta": it has no numbers, so that reading one fails, and copies from the host show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ctd_engine import schedules
from ctd_engine.integrations.edm import ContrastiveEDMLoss
from ctd_engine.integrations.k_diffusion import ContrastiveDenoiserLoss
from ctd_engine.losses import ContrastiveDiffusionLoss, DenoisingLoss


class Transfers(TorchDispatchMode):
    """Operations with tensors on two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, out))
        if len({leaf.device for leaf in leaves if isinstance(leaf, Tensor)}) > 1:
            self.seen.append(str(func))
        return out


def on_the_device(shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, device="meta")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1, device="meta")

    def forward(self, x: Tensor, t: Tensor, labels: Tensor, augment_labels: None = None) -> Tensor:
        out: Tensor = self.conv(x) * labels.view(-1, 1, 1, 1) + t.view(-1, 1, 1, 1)
        return out


def plain(loss: Any) -> Callable[[Network, Tensor, Tensor], Tensor]:
    return lambda model, x, labels: loss(model, x, labels=labels)


def edm() -> Callable[[Network, Tensor, Tensor], Tensor]:
    loss = ContrastiveEDMLoss()
    return lambda model, x, labels: loss(model, x, labels).sum()


def k_diffusion() -> Callable[[Network, Tensor, Tensor], Tensor]:
    loss = ContrastiveDenoiserLoss()
    return lambda model, x, labels: loss(model, x, x, labels[:, 0], labels=labels).mean()


VP = schedules.linear_beta()
STEPS: dict[str, Callable[[Network, Tensor, Tensor], Tensor]] = {
    "denoising": plain(DenoisingLoss(VP)),
    "epsilon": plain(ContrastiveDiffusionLoss(VP)),
    "separate draws": plain(ContrastiveDiffusionLoss(VP, common_random_numbers=False)),
    "v, index": plain(ContrastiveDiffusionLoss(VP, prediction="v", time="index")),
    "edm": plain(ContrastiveDiffusionLoss(schedules.karras(), prediction="edm")),
    "flow": plain(ContrastiveDiffusionLoss(schedules.flow(), prediction="flow")),
    "EDM's loss": edm(),
    "k-diffusion's loss": k_diffusion(),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_does_not_wait(name: str) -> None:
    model, x, labels = Network(), on_the_device((20, 1, 4, 4)), on_the_device((20, 1))
    # the first step may copy the schedule
    STEPS[name](model, x, labels).backward()
    with Transfers() as transfers:
        STEPS[name](model, x, labels).backward()
    assert transfers.seen == []


def test_transfers_are_seen() -> None:
    with Transfers() as transfers:
        torch.arange(3).to("meta")
    assert transfers.seen == ["aten._to_copy.default"]
    with pytest.raises(RuntimeError, match="meta"):
        on_the_device((1,)).item()
