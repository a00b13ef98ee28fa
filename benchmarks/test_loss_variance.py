"""Common against independent random numbers in the contrastive loss: spread and time per draw.

Four-dimensional Gaussian data with the exact denoiser; alpha from the data's covariance spectrum,
cut at 4 scales; points of p_zeta. Independent draws are the published form of the estimator.
`pytest benchmarks/test_loss_variance.py --benchmark-only -s` prints the table.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ctd_engine import schedules
from ctd_engine._contrast import Contrast
from ctd_engine.logsnr_distributions import logistic_from_data

NUM_POINTS, NUM_DRAWS = 64, 4096
ZETAS = (0.0, 3.0, 8.0)
VARIANCES = torch.tensor([0.2, 0.5, 1.0, 2.0], dtype=torch.float64)

_spread: dict[tuple[float, bool], float] = {}


def exact_model(x: Tensor, t: Tensor) -> Tensor:
    """Exact noise prediction for N(0, diag(VARIANCES)), told the log-SNR."""
    signal, noise = torch.sigmoid(t)[:, None], torch.sigmoid(-t)[:, None]
    return noise.sqrt() * x / (signal * VARIANCES + noise)


def log_ratio(z: Tensor, zeta: float) -> Tensor:
    """Closed form of delta."""
    signal = torch.sigmoid(torch.tensor(zeta, dtype=torch.float64))
    noised = signal * VARIANCES + 1.0 - signal
    return 0.5 * (z**2 / VARIANCES - z**2 / noised + torch.log(VARIANCES / noised)).sum(1)


@pytest.mark.parametrize("common", [True, False], ids=["common", "independent"])
@pytest.mark.parametrize("zeta", ZETAS)
def test_loss_variance(benchmark: Any, zeta: float, common: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(20_000, 4, generator=generator, dtype=torch.float64) * VARIANCES.sqrt()
    levels = torch.linspace(16.0, -16.0, 1000, dtype=torch.float64)
    contrast = Contrast(
        schedules.from_alphas_cumprod(torch.sigmoid(levels)),
        prediction="epsilon",
        time="logsnr",
        sigma_data=0.5,
        alpha=logistic_from_data(data, clip=4.0),
    )
    signal = torch.sigmoid(torch.tensor(zeta, dtype=torch.float64))
    noise = torch.randn(NUM_POINTS, 4, generator=generator, dtype=torch.float64)
    z = signal.sqrt() * data[:NUM_POINTS] + (1.0 - signal).sqrt() * noise
    rows = z.repeat_interleave(NUM_DRAWS, 0)
    levels = torch.full((len(rows),), zeta, dtype=torch.float64)

    def draw() -> Tensor:
        pairs = contrast.pairs(rows, levels, 1, generator, common_random_numbers=common)
        out = exact_model(pairs.query.input, pairs.query.time)
        _, delta = contrast.reduce(pairs, out, torch.ones(len(rows)))
        return delta.view(NUM_POINTS, NUM_DRAWS)

    delta = benchmark.pedantic(draw, rounds=3, warmup_rounds=1)
    spread = float(delta.var(1).mean().sqrt())
    bias = float((delta.mean(1) - log_ratio(z, zeta)).mean())
    # an estimator that is not correct gets no number: the cut leaves a bias below 0.1 here
    assert abs(bias) < 0.1 + 4 * spread / (NUM_POINTS * NUM_DRAWS) ** 0.5
    benchmark.extra_info.update(zeta=zeta, common=common, std_per_draw=spread, bias=bias)
    _spread[zeta, common] = spread
    if not common and (zeta, True) in _spread:
        assert spread > _spread[zeta, True]


@pytest.fixture(scope="module", autouse=True)
def table() -> Any:
    """Print what was measured once every case has run."""
    yield
    complete = [zeta for zeta in ZETAS if (zeta, True) in _spread and (zeta, False) in _spread]
    if not complete:
        return
    print("\n\n| zeta | std per draw, common | independent | variance ratio |\n|---|---|---|---|")
    for zeta in complete:
        common, independent = _spread[zeta, True], _spread[zeta, False]
        ratio = (independent / common) ** 2
        print(f"| {zeta:g} | {common:.3g} | {independent:.3g} | {ratio:,.0f} |")
