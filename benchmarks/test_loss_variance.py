"""Standard error of delta at equal model evaluations: independent draws, common, and alpha | zeta.

Gaussian data with the exact denoiser, no training. The variances of its directions are spread
evenly in their logarithm, from 1 to 0.001 and in 64 dimensions over three other ranges; alpha is a
logistic, from that spectrum or the default one, cut at 4 or 3 scales. Independent draws are the
published form of the estimator.

pytest benchmarks/test_loss_variance.py --benchmark-only --benchmark-full -s    prints the table
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ctd_engine import schedules
from ctd_engine._contrast import DEFAULT_ALPHA, Contrast
from ctd_engine.logsnr_distributions import LogSNRDistribution, TruncatedLogistic

NUM_POINTS = 64
# by dimension, of the published table; two dimensions have heavy tails, which few draws miss
NUM_DRAWS = {2: 8192, 64: 1024, 3072: 64}
SHORT = {2: 8192, 64: 256, 3072: 16}
MOST_ELEMENTS = 2_000_000
# decimal logarithms of the largest and smallest variance; alpha | zeta was chosen on the first
SPECTRA = ((0, -3), (1, -4), (0, -1), (2, -2))
CASES = [(SPECTRA[0], size) for size in NUM_DRAWS] + [(range_, 64) for range_ in SPECTRA[1:]]
ZETAS = (0.0, 3.0, 6.0, 10.0, 15.0)
FORMS: dict[str, dict[str, bool]] = {
    "independent": {"common_random_numbers": False},
    "common": {},
    "given zeta": {"alpha_given_zeta": True},
}


Spectrum = tuple[int, int]


class Row(NamedTuple):
    exact: float  # mean of delta over the points, closed form
    mean: dict[str, float]
    spread: dict[str, float]  # standard error at 2 evaluations, that is of one draw


_rows: dict[tuple[str, Spectrum, int, str, float], Row] = {}


def variances(spectrum: Spectrum, num_dimensions: int) -> Tensor:
    return torch.logspace(*spectrum, num_dimensions, dtype=torch.float64)


def exact_model(variance: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Exact noise prediction for N(0, diag(variance)), told the log-SNR."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        signal, noise = torch.sigmoid(t)[:, None], torch.sigmoid(-t)[:, None]
        return noise.sqrt() * x / (signal * variance + noise)

    return model


def log_ratio(z: Tensor, variance: Tensor, zeta: float) -> Tensor:
    """Closed form of delta; the variance of p_zeta less that of p keeps its digits."""
    change = torch.sigmoid(torch.tensor(-zeta, dtype=torch.float64)) * (1.0 - variance) / variance
    return 0.5 * (z**2 / variance * change / (1.0 + change) - torch.log1p(change)).sum(1)


def alphas(variance: Tensor) -> dict[str, LogSNRDistribution]:
    # `alpha_from_data` without the error of a finite number of samples
    logs = variance.log()
    scale = math.sqrt(1.0 + 3.0 * float(logs.var(correction=0)) / math.pi**2)
    return {
        "from data": TruncatedLogistic(-float(logs.mean()), scale, clip=4.0),
        "default": DEFAULT_ALPHA,
    }


def draw_deltas(
    contrast: Contrast,
    variance: Tensor,
    z: Tensor,
    zeta: float,
    form: str,
    num_draws: int,
    generator: torch.Generator,
) -> Tensor:
    """Single-draw estimates of delta at every point, `[K, n]`."""
    num_dimensions = z.shape[1]
    model = exact_model(variance)
    step = min(num_draws, max(1, MOST_ELEMENTS // (len(z) * num_dimensions)))
    deltas = []
    for _ in range(num_draws // step):
        rows = z.repeat_interleave(step, 0)
        levels = torch.full((len(rows),), zeta, dtype=torch.float64)
        pairs = contrast.pairs(rows, levels, 1, generator, **FORMS[form])
        out = model(pairs.query.input, pairs.query.time)
        _, delta = contrast.reduce(pairs, out, torch.ones(len(rows)))
        deltas.append(delta.view(len(z), step))
    return torch.cat(deltas, 1)


@pytest.mark.parametrize("zeta", ZETAS)
@pytest.mark.parametrize("points", ["p", "p_zeta"])
@pytest.mark.parametrize("spectrum, num_dimensions", CASES)
@pytest.mark.parametrize("alpha", ["from data", "default"])
def test_loss_variance(
    benchmark: Any,
    is_full: bool,
    alpha: str,
    spectrum: Spectrum,
    num_dimensions: int,
    points: str,
    zeta: float,
) -> None:
    num_draws = (NUM_DRAWS if is_full else SHORT)[num_dimensions]
    variance = variances(spectrum, num_dimensions)
    generator = torch.Generator().manual_seed(0)
    grid = torch.linspace(22.0, -22.0, 1000, dtype=torch.float64)
    contrast = Contrast(
        schedules.from_alphas_cumprod(torch.sigmoid(grid)),
        prediction="epsilon",
        time="logsnr",
        sigma_data=0.5,
        alpha=alphas(variance)[alpha],
    )
    shape = (2, NUM_POINTS, num_dimensions)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    z = noise[0] * variance.sqrt()
    if points == "p_zeta":
        signal = torch.sigmoid(torch.tensor(zeta, dtype=torch.float64))
        z = signal.sqrt() * z + (1.0 - signal).sqrt() * noise[1]

    def measure() -> dict[str, Tensor]:
        return {
            form: draw_deltas(contrast, variance, z, zeta, form, num_draws, generator)
            for form in FORMS
        }

    deltas = benchmark.pedantic(measure, rounds=1)
    mean = {form: float(delta.mean()) for form, delta in deltas.items()}
    spread = {form: float(delta.var(1).mean().sqrt()) for form, delta in deltas.items()}
    exact = float(log_ratio(z, variance, zeta).mean())
    # an estimator that is not correct gets no number: all three estimate one integral
    for form in FORMS:
        error = math.hypot(spread[form], spread["common"]) / math.sqrt(deltas[form].numel())
        assert abs(mean[form] - mean["common"]) <= 5.0 * error, form
    _rows[alpha, spectrum, num_dimensions, points, zeta] = Row(exact, mean, spread)
    benchmark.extra_info.update(exact=exact, mean=mean, standard_error=spread)
    most = 1.15 if spectrum == SPECTRA[0] else 1.35
    assert spread["given zeta"] < most * spread["common"]
    assert spread["common"] < spread["independent"]


@pytest.fixture(scope="module", autouse=True)
def table() -> Any:
    """Print what was measured once every case has run."""
    yield
    print(
        "\n\n| alpha | variances | D | points of | zeta | delta | independent | common "
        "| alpha given zeta | variance, common / given zeta |\n|" + 10 * "---|"
    )
    for (alpha, (high, low), num_dimensions, points, zeta), row in _rows.items():
        spread = row.spread
        gain = (spread["common"] / spread["given zeta"]) ** 2
        print(
            f"| {alpha} | 1e{high}, 1e{low} | {num_dimensions} | {points} | {zeta:g} "
            f"| {row.exact:.3g} | {spread['independent']:.3g} | {spread['common']:.3g} "
            f"| {spread['given zeta']:.3g} | {gain:.2g} |"
        )
