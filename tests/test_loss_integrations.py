"""The losses in the shape of EDM and k-diffusion, against the published formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctd_engine.integrations.edm import ContrastiveEDMLoss
from ctd_engine.integrations.k_diffusion import ContrastiveDenoiserLoss
from ctd_engine.logsnr_distributions import Uniform

F64 = torch.float64
SHAPE = (20, 3, 4, 4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Precond(nn.Module):
    """EDM's preconditioning (its table 1) around one convolution, with EDM's call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1).to(F64)
        self.calls: list[dict[str, Any]] = []

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        self.calls.append(
            {"x": x, "sigma": sigma, "labels": class_labels, "augment_labels": augment_labels}
        )
        sigma = sigma.reshape(-1, 1, 1, 1)
        c_skip = 0.25 / (sigma**2 + 0.25)
        c_out, c_in = sigma * 0.5 / (sigma**2 + 0.25).sqrt(), 1 / (sigma**2 + 0.25).sqrt()
        return c_skip * x + c_out * torch.tanh(self.conv(c_in * x))


def images() -> Tensor:
    return torch.rand(SHAPE, generator=seeded(1), dtype=F64) * 2 - 1


def options(**changes: Any) -> dict[str, Any]:
    return {"zeta": Uniform(-1.0, 5.0), "num_points": 4, "num_draws": 2, **changes}


def published(net: Precond, call: dict[str, Any], y: Tensor) -> Tensor:
    """EDMLoss of NVlabs/edm, at the noise that the call was made with."""
    sigma = call["sigma"][: len(y)]
    weight = (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2
    return weight * (net(call["x"][: len(y)], sigma) - y) ** 2


def test_edm_without_contrast_is_the_published_loss() -> None:
    net, y = Precond(), images()
    loss = ContrastiveEDMLoss(contrastive_weight=0.0)
    value = loss(net=net, images=y, generator=seeded(2))
    assert value.shape == y.shape
    assert [len(call["x"]) for call in net.calls] == [len(y)]
    torch.testing.assert_close(value, published(net, net.calls[0], y))
    torch.testing.assert_close(loss.last["denoising"], value.detach().mean())


def test_edm_draws_the_published_noise_levels() -> None:
    net = Precond()
    y = torch.zeros(20_000, 3, 1, 1, dtype=F64)
    ContrastiveEDMLoss(contrastive_weight=0.0)(net, y, generator=seeded(3))
    call = net.calls[0]
    logs = call["sigma"].log()
    assert call["sigma"].shape == (20_000, 1, 1, 1)
    assert float(logs.mean()) == pytest.approx(-1.2, abs=4 * 1.2 / 20_000**0.5)
    assert float(logs.std()) == pytest.approx(1.2, rel=0.03)
    noise = call["x"] / call["sigma"]
    assert float(noise.std()) == pytest.approx(1.0, rel=0.02)


def test_edm_adds_the_contrast_of_a_batch() -> None:
    net, y = Precond(), images()
    loss = ContrastiveEDMLoss(contrastive_weight=0.7, **options())
    value = loss(net, y, generator=seeded(4))
    assert [len(call["x"]) for call in net.calls] == [20 + 2 * 4 * 2]
    contrastive = loss.last["contrastive"] * y[0].numel()
    expected = published(net, net.calls[0], y).sum() / len(y) + 0.7 * contrastive
    torch.testing.assert_close(value.sum() / len(y), expected)
    # EDM's training loop
    value.sum().mul(1.0 / len(y)).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
    samples = (value - published(net, net.calls[0], y)).flatten(1).abs().sum(1)
    # the loss of a point that is told with certainty is 0 to all digits
    told = set((samples > 1e-9).nonzero()[:, 0].tolist())
    assert {0, 10, 15} <= told <= {0, 5, 10, 15}


def test_edm_labels_and_augmentation_follow_their_image() -> None:
    net, y = Precond(), images()
    labels = torch.arange(20, dtype=F64)[:, None]

    def augment(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flip(3), 100 + labels

    loss = ContrastiveEDMLoss(**options())
    value = loss(net=net, images=y, labels=labels, augment_pipe=augment, generator=seeded(5))
    call = net.calls[0]
    points = 2 * [0, 0, 5, 5, 10, 10, 15, 15]
    assert call["labels"][:, 0].tolist() == [*range(20), *points]
    assert torch.equal(call["augment_labels"], 100 + call["labels"])
    # the augmented image is the target
    clean = published(net, call, y.flip(3))
    torch.testing.assert_close(value[1:5], clean[1:5])


def test_k_diffusion_without_contrast_is_the_published_loss() -> None:
    net, x = Precond(), images()
    noise = torch.randn(SHAPE, generator=seeded(6), dtype=F64)
    sigma = torch.logspace(-2, 1, len(x), dtype=F64)
    value = ContrastiveDenoiserLoss(contrastive_weight=0.0)(net, x, noise, sigma)
    assert torch.equal(net.calls[0]["sigma"], sigma)
    # Denoiser.loss: the error of the inner model's own output
    s = sigma.reshape(-1, 1, 1, 1)
    noised = x + noise * s
    c_skip, c_out = 0.25 / (s**2 + 0.25), s * 0.5 / (s**2 + 0.25).sqrt()
    inner = torch.tanh(net.conv(noised / (s**2 + 0.25).sqrt()))
    target = (x - c_skip * noised) / c_out
    torch.testing.assert_close(value, (inner - target).square().flatten(1).mean(1))


def test_k_diffusion_adds_the_contrast_of_a_batch() -> None:
    net, x = Precond(), images()
    noise = torch.randn(SHAPE, generator=seeded(6), dtype=F64)
    sigma = torch.full((len(x),), 0.5, dtype=F64)
    plain = ContrastiveDenoiserLoss(contrastive_weight=0.0)(net, x, noise, sigma)
    loss = ContrastiveDenoiserLoss(contrastive_weight=0.7, **options())
    value = loss(net, x, noise, sigma, generator=seeded(7))
    expected = plain.mean() + 0.7 * loss.last["contrastive"]
    torch.testing.assert_close(value.mean(), expected)
    torch.testing.assert_close(loss.last["denoising"], plain.detach().mean())
    value.mean().backward()
    assert net.conv.weight.grad is not None


def test_rejects() -> None:
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="P_std must be positive, got 0"):
        ContrastiveEDMLoss(P_std=0.0)
    with pytest.raises(ValueError, match="sigma_data must be positive, got -1"):
        ContrastiveDenoiserLoss(sigma_data=-1.0)
    with pytest.raises(ValueError, match="contrastive_weight must be finite"):
        ContrastiveEDMLoss(contrastive_weight=-1.0)
    with pytest.raises(TypeError, match="images must be a tensor, got list"):
        ContrastiveEDMLoss()(Precond(), [0.0])
    with pytest.raises(ValueError, match=r"noise must have the shape of x, .* got \(2,\) and"):
        ContrastiveDenoiserLoss()(Precond(), x, x[:, 0, 0, 0], torch.ones(2))
