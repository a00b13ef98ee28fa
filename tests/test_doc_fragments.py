"""Fragments of the pages that speak of the reader's own objects run with small ones of ours."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import torch

from ctd_engine import ContrastiveDiffusionLoss, schedules

ROOT = Path(__file__).parent.parent


def fragments(page: str, heading: str) -> str:
    """The indented lines of a section."""
    section = (ROOT / page).read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    indented = re.findall(r"^    .*$", section.partition("\n## ")[0], re.MULTILINE)
    assert indented
    return textwrap.dedent("\n".join(indented))


class Net(torch.nn.Module):
    """Denoised answers of EDM's and k-diffusion's calls."""

    def forward(self, x, sigma, labels=None, augment_labels=None):
        return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)


def test_a_pipeline_in_the_readme():
    pytest.importorskip("diffusers")
    import tiny_pipelines as tiny

    pipe = tiny.seeded(tiny.stable_diffusion)
    names = {"pipe": pipe}
    exec(fragments("README.md", "With the models that you have"), names)
    assert names["image"].size == (16, 16)
    assert "forward" not in vars(pipe.unet)


def test_the_loss_in_the_readme():
    (code,) = re.findall(r"`(loss = Contrastive[^`]+)`", (ROOT / "README.md").read_text("utf-8"))
    names = {
        "ContrastiveDiffusionLoss": ContrastiveDiffusionLoss,
        "schedules": schedules,
        "model": lambda x, t: x,
        "x": torch.randn(8, 2, generator=torch.Generator().manual_seed(0)),
    }
    exec(code, names)
    assert 0.0 < float(names["loss"]) < 1e3


def test_losses_in_other_training_scripts():
    generator = torch.Generator().manual_seed(0)
    images, noise = (torch.randn(48, 1, 4, 4, generator=generator) for _ in range(2))
    names = {
        "net": Net(),
        "model": Net(),
        "images": images,
        "labels": None,
        "augment_pipe": None,
        "x": images,
        "noise": noise,
        "sigma": torch.linspace(0.1, 5.0, 48),
    }
    exec(fragments("docs/training.md", "In EDM's or k-diffusion's training script"), names)
    assert names["loss"].shape == images.shape
    assert names["losses"].shape == (48,)
