"""Cost of the contrastive loss at its defaults, beside a step of the denoising loss alone.

A step is forward, backward and AdamW. The steps of both losses alternate, each with a model of its
own; what counts is the median.
`pytest benchmarks/test_loss_cost.py --benchmark-only -s` prints the table.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctd_engine import ContrastiveDiffusionLoss, DenoisingLoss, schedules
from ctd_engine.training.mlp import PointMLP
from ctd_engine.training.unet import SmallUNet

MOST = 1.5
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "U-Net, 64 images of 8x8": (lambda: SmallUNet(shape=(1, 8, 8)), (64, 1, 8, 8), 12),
    "MLP, 256 points of 2D": (lambda: PointMLP(shape=(2,)), (256, 2), 200),
}


def stepper(
    loss_fn: DenoisingLoss | ContrastiveDiffusionLoss, make: Callable[[], nn.Module], x: Tensor
) -> Callable[[], None]:
    torch.manual_seed(0)
    network = make()
    optimizer = torch.optim.AdamW(network.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss_fn(network, x).backward()
        optimizer.step()

    return step


@pytest.mark.parametrize("case", CASES)
def test_loss_cost(benchmark: Any, case: str) -> None:
    make, shape, num_steps = CASES[case]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    schedule = schedules.linear_beta()
    steps = {
        "denoising": stepper(DenoisingLoss(schedule), make, x),
        "contrastive": stepper(ContrastiveDiffusionLoss(schedule), make, x),
    }
    times_s: dict[str, list[float]] = {name: [] for name in steps}

    def turn() -> None:
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times_s[name].append(time.perf_counter() - start)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        benchmark.pedantic(turn, rounds=num_steps, warmup_rounds=3)
    finally:
        torch.set_num_threads(threads)
    medians = {name: statistics.median(values[3:] or values) for name, values in times_s.items()}
    ratio = medians["contrastive"] / medians["denoising"]
    benchmark.extra_info.update({f"{name}_s": value for name, value in medians.items()})
    plain, both = 1e3 * medians["denoising"], 1e3 * medians["contrastive"]
    print(f"\n| {case} | {plain:.2f} ms | {both:.2f} ms | {ratio:.2f} |")
    # one step of a smoke run says nothing about time
    if benchmark.enabled:
        assert ratio <= MOST
