"""The contrastive loss where it is used: split batches, gradients, backends, mixture data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ctd_engine._contrast import Contrast
from ctd_engine.logsnr_distributions import TruncatedLogistic
from gaussian_problem import contrast_points, wide_schedule
from training_problem import (
    F64,
    WHOLE,
    Network,
    batch,
    gradients,
    make_loss,
    seeded,
    split_draws,
    whole_gradients,
)

# where kernels run: in the interpreter if there is no GPU
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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
            half = (
                make_loss(num_points=1, **options)(network, batch()[first : first + WHOLE // 2]) / 2
            )
            half.backward()
        total += half.detach()
    torch.testing.assert_close(total, value)
    torch.testing.assert_close(gradients(network), expected)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_gradient_through_a_network(backend: str) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    network, loss, x = Network().to(DEVICE), make_loss(backend=backend), batch().to(DEVICE)
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
    pytest.importorskip("triton")
    results = []
    for backend in ("triton", "reference"):
        network = Network().to(DEVICE)
        loss = make_loss(backend=backend, prediction=prediction, num_points=6)
        value = loss(network, batch().to(DEVICE), generator=seeded(2))
        value.backward()
        results.append((value.detach(), gradients(network), loss.last["delta_mean"]))
    torch.testing.assert_close(results[0], results[1])


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
