"""What a training run is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ctd_engine import _checks, schedules

__all__ = ["LOSSES", "TrainConfig", "config_from"]

LOSSES = ("denoising", "contrastive")
DECAYS = ("cosine", "none")


@dataclass(frozen=True)
class TrainConfig:
    """What a training run is told; all of it is kept in the checkpoint.

    `steps` optimiser steps of `batch_size`; learning rate `lr` after `warmup` steps, decayed to 0
    by a cosine (`lr_decay="none"` keeps it, so that any step is a fair place to stop); gradients
    clipped to norm `grad_clip`; weights averaged with `ema_decay`; labels replaced by the null
    label with probability `label_dropout`; `contrastive_weight`, `temperature`, `num_points` and
    `num_draws` as in `ContrastiveDiffusionLoss`.

    Raises:
        ValueError, TypeError: an entry is out of range or of another type.
    """

    steps: int = 10_000
    batch_size: int = 128
    lr: float = 1e-3
    warmup: int = 200
    lr_decay: str = "cosine"
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    label_dropout: float = 0.1
    loss: str = "denoising"
    contrastive_weight: float = 0.01
    temperature: float = 5.0
    num_points: int | None = None
    num_draws: int = 2
    width: int = 32
    prediction: str = "epsilon"
    schedule: str = "linear_beta"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "num_draws", "width"):
            _checks.require_int(name, getattr(self, name), minimum=1)
        if self.num_points is not None:
            _checks.require_int("num_points", self.num_points, minimum=1)
            if self.num_points > self.batch_size:
                raise ValueError(
                    f"num_points must be at most batch_size, {self.batch_size}, got "
                    f"{self.num_points}"
                )
        _checks.require_int("warmup", self.warmup, minimum=0)
        _checks.require_int("seed", self.seed, minimum=0)
        for name in ("lr", "grad_clip"):
            _checks.require_float(name, getattr(self, name), above=0.0)
        for name in ("ema_decay", "label_dropout"):
            if not 0.0 <= _checks.require_float(name, getattr(self, name)) < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        _checks.require_float("contrastive_weight", self.contrastive_weight, minimum=0.0)
        _checks.require_float("temperature", self.temperature, above=0.0)
        _checks.require_choice("loss", self.loss, LOSSES)
        _checks.require_choice("lr_decay", self.lr_decay, DECAYS)
        schedules.get(self.schedule)


def config_from(values: Mapping[str, Any]) -> TrainConfig:
    """The configuration that a checkpoint holds.

    Raises:
        ValueError: entries that are unknown or out of range.
    """
    known = {field.name for field in fields(TrainConfig)}
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ValueError(f"the checkpoint's training configuration has unknown entries {unknown}")
    # what was written before there was a temperature trained with the paper's loss
    return TrainConfig(**{"temperature": 1.0, **values})
