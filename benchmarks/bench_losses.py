"""A training step with every loss: forward, backward and AdamW, of a small U-Net on 8x8 images.

pytest benchmarks/bench_losses.py --benchmark-only

`test_loss_cost.py` has the ratio of the first two, taken in turns. The published form draws both
densities' noise separately, at temperature 1 and the weight of the published code.
"""

from __future__ import annotations

import pytest
import torch

from ctd_engine import ContrastiveDiffusionLoss, DenoisingLoss, schedules
from ctd_engine.training.unet import SmallUNet
from test_loss_cost import stepper

BATCH, SHAPE = 64, (1, 8, 8)
SCHEDULE = schedules.linear_beta()
LOSSES = {
    "denoising": DenoisingLoss(SCHEDULE),
    "contrastive": ContrastiveDiffusionLoss(SCHEDULE),
    "published form": ContrastiveDiffusionLoss(
        SCHEDULE, contrastive_weight=4 / BATCH, temperature=1.0, common_random_numbers=False
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_step(benchmark, name):
    x = torch.randn(BATCH, *SHAPE, generator=torch.Generator().manual_seed(0))
    step = stepper(LOSSES[name], lambda: SmallUNet(shape=SHAPE), x)
    benchmark.pedantic(step, rounds=10, warmup_rounds=2)
    assert all(bool(value.isfinite()) for value in getattr(LOSSES[name], "last", {}).values())
