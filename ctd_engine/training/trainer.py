"""The trainer: AdamW, EMA, warm-up and cosine decay, clipping, exact resume."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ctd_engine import schedules
from ctd_engine.logsnr_distributions import alpha_from_data, zeta_from_data
from ctd_engine.losses import ContrastiveDiffusionLoss, DenoisingLoss
from ctd_engine.schedules import Schedule
from ctd_engine.training.checkpoint import (
    build_model,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)
from ctd_engine.training.config import TrainConfig, config_from
from ctd_engine.training.data import Dataset

__all__ = ["TrainConfig", "TrainResult", "Trainer"]


@dataclass(frozen=True)
class TrainResult:
    """Where a run ended: its step, the smoothed loss, and whether it was interrupted."""

    step: int
    loss: float
    interrupted: bool


class Trainer:
    """One training run over a dataset in memory, on one device.

    Args:
        data: the dataset.
        config: see `TrainConfig`.
        device: where to train.
        model_config: for `build_model`; None chooses by the shape of the data.
    """

    def __init__(
        self,
        data: Dataset,
        config: TrainConfig,
        device: torch.device | str = "cpu",
        *,
        model_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.data, self.config, self.device = data, config, torch.device(device)
        if config.batch_size > len(data.x):
            raise ValueError(
                f"batch_size must be at most the {len(data.x)} items of the data, "
                f"got {config.batch_size}"
            )
        self.schedule = schedules.get(config.schedule)()
        self.model_config = dict(model_config or _model_config(data, config))
        self.generator = torch.Generator().manual_seed(config.seed)
        # initial weights come from the run's own seed, and the global generator is left alone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = build_model(self.model_config).to(self.device)
            self.ema = build_model(self.model_config).to(self.device)
        self.ema.load_state_dict(self.model.state_dict())
        self.ema.requires_grad_(False)
        self.loss = _make_loss(self.schedule, config, data.x)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr)
        self.step = 0
        self._smoothed = float("nan")

    def run(
        self, path: str | Path, *, save_every: int = 1000, progress: bool = True
    ) -> TrainResult:
        """Train to the last step; write the checkpoint at times, at the end and on Ctrl-C.

        Raises:
            RuntimeError: the loss is not finite; the last checkpoint is kept as it is.
        """
        steps, interrupted = self.config.steps, False
        with tqdm(total=steps, initial=self.step, disable=not progress, unit="step") as bar:
            try:
                while self.step < steps:
                    self.train_step()
                    bar.update(1)
                    if self.step % 50 == 0:
                        bar.set_postfix(loss=f"{self._smoothed:.4f}")
                    if self.step % save_every == 0 and self.step < steps:
                        self.save(path)
            except KeyboardInterrupt:
                interrupted = True
        self.save(path)
        return TrainResult(self.step, self._smoothed, interrupted)

    def train_step(self) -> None:
        """One optimiser step, and its share in the averaged weights.

        Raises:
            RuntimeError: the loss is not finite; the weights are as they were.
        """
        config = self.config
        index = torch.randint(len(self.data.x), (config.batch_size,), generator=self.generator)
        x = self.data.x[index].to(self.device)
        cond: dict[str, Tensor] = {}
        if self.data.labels is not None:
            dropped = torch.rand(config.batch_size, generator=self.generator)
            labels = self.data.labels[index]
            null = self.data.num_classes or 0
            cond["label"] = torch.where(dropped < config.label_dropout, null, labels).to(
                self.device
            )
        loss = self.loss(self.model, x, generator=self.generator, **cond)
        value = float(loss.detach())  # sync: a loss that is not finite must not reach the weights
        if not math.isfinite(value):
            raise RuntimeError(
                f"the loss is {value} at step {self.step}; the weights were not changed. Lower lr "
                f"(now {config.lr:g}) or grad_clip (now {config.grad_clip:g})"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = _learning_rate(config, self.step)
        self.optimizer.step()
        self.step += 1
        # a short memory at first, so that the average forgets the initial weights
        decay = min(config.ema_decay, (1.0 + self.step) / (10.0 + self.step))
        for average, value_now in zip(
            self.ema.state_dict().values(), self.model.state_dict().values(), strict=True
        ):
            average.lerp_(value_now, 1.0 - decay)
        old = self._smoothed
        self._smoothed = value if math.isnan(old) else 0.98 * old + 0.02 * value

    def description(self) -> dict[str, Any]:
        """The configuration that a checkpoint carries."""
        return {
            "model": self.model_config,
            "schedule": self.schedule.config,
            "prediction": self.config.prediction,
            "shape": list(self.data.x.shape[1:]),
            "num_classes": self.data.num_classes,
            "data": {
                "name": self.data.name,
                "scale": self.data.scale,
                "offset": self.data.offset,
                "size": len(self.data.x),
            },
            "train": asdict(self.config),
            "step": self.step,
            "loss": self._smoothed,
        }

    def save(self, path: str | Path, *, ema_only: bool = False) -> None:
        """Write a checkpoint; `ema_only` leaves out what only a resumed run needs."""
        tensors = {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        if not ema_only:
            for name, value in self.model.state_dict().items():
                tensors[f"model.{name}"] = value
            for index, state in self.optimizer.state_dict()["state"].items():
                for name, value in state.items():
                    tensors[f"optimizer.{index}.{name}"] = value
            tensors["generator"] = self.generator.get_state()
        save_checkpoint(path, tensors, self.description())

    @classmethod
    def resume(cls, path: str | Path, data: Dataset, device: torch.device | str = "cpu") -> Trainer:
        """The run of a checkpoint, exactly where it was: it ends as if never interrupted.

        Raises:
            ValueError: the checkpoint cannot be read, was exported without its training state, or
                is of other data.
        """
        tensors, description = read_checkpoint(path)
        if "generator" not in tensors:
            raise ValueError(
                f"checkpoint {path} holds averaged weights only and cannot be resumed; use the "
                "one that the training run wrote"
            )
        expected = (tuple(description["shape"]), description["data"]["size"])
        got = (tuple(data.x.shape[1:]), len(data.x))
        if expected != got:
            raise ValueError(
                f"checkpoint {path} was trained on {expected[1]} items of shape {expected[0]}, "
                f"the data has {got[1]} of shape {got[0]}"
            )
        config = config_from(description["train"])
        trainer = cls(data, config, device, model_config=description["model"])
        load_weights(trainer.model, tensors, "model.", path)
        load_weights(trainer.ema, tensors, "ema.", path)
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = value
        groups = trainer.optimizer.state_dict()["param_groups"]
        trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
        trainer.generator.set_state(tensors["generator"])
        trainer.step = int(description["step"])
        trainer._smoothed = float(description["loss"])
        return trainer


def _model_config(data: Dataset, config: TrainConfig) -> dict[str, Any]:
    shape = list(data.x.shape[1:])
    if len(shape) == 1:
        return {"kind": "mlp", "arguments": {"shape": shape, "width": 4 * config.width}}
    arguments = {"shape": shape, "width": config.width, "num_classes": data.num_classes}
    return {"kind": "unet", "arguments": arguments}


def _make_loss(
    schedule: Schedule, config: TrainConfig, x: Tensor
) -> DenoisingLoss | ContrastiveDiffusionLoss:
    if config.loss == "denoising":
        return DenoisingLoss(schedule, prediction=config.prediction)
    return ContrastiveDiffusionLoss(
        schedule,
        prediction=config.prediction,
        contrastive_weight=config.contrastive_weight,
        temperature=config.temperature,
        num_points=config.num_points,
        num_draws=config.num_draws,
        # points: about [-3, 5] at their variance of 1; images: the paper's choice
        zeta=zeta_from_data(x) if x.dim() == 2 else None,
        alpha=alpha_from_data(x),
    )


def _learning_rate(config: TrainConfig, step: int) -> float:
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    if config.lr_decay == "none":
        return config.lr * warm
    return config.lr * warm * 0.5 * (1.0 + math.cos(math.pi * step / config.steps))
