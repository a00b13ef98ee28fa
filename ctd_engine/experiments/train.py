"""One training run, and what a step costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ctd_engine.experiments.losses import make_loss
from ctd_engine.experiments.problems import Problem
from ctd_engine.experiments.settings import Experiment, LossSettings
from ctd_engine.training.checkpoint import build_model
from ctd_engine.training.config import TrainConfig
from ctd_engine.training.trainer import Trainer

__all__ = ["Snapshot", "relative_cost", "train"]

_TURNS = 9
_STEPS_PER_TURN = 10


@dataclass(frozen=True)
class Snapshot:
    """The averaged model after some steps, and the processor time that they took."""

    steps: int
    cpu_time_s: float
    model: nn.Module


def make_trainer(
    problem: Problem, experiment: Experiment, loss: LossSettings, seed: int
) -> Trainer:
    """A trainer for the experiment's model with one of its losses, on the CPU."""
    config = TrainConfig(
        steps=experiment.steps,
        batch_size=experiment.batch_size,
        lr=experiment.lr,
        warmup=min(200, experiment.steps // 10),
        lr_decay="none",
        grad_clip=experiment.grad_clip,
        ema_decay=experiment.ema_decay,
        width=experiment.width,
        seed=seed,
    )
    trainer = Trainer(problem.data, config, model_config=_model_config(problem, experiment))
    trainer.loss = make_loss(loss, trainer.schedule, problem.data.x)
    return trainer


def _model_config(problem: Problem, experiment: Experiment) -> dict[str, Any] | None:
    """Points get the trainer's own model with some frequencies, images the trainer's own."""
    if problem.distribution is None:
        return None
    arguments = {
        "shape": list(problem.data.x.shape[1:]),
        "width": 4 * experiment.width,
        "num_frequencies": experiment.num_frequencies,
    }
    return {"kind": "mlp", "arguments": arguments}


def relative_cost(problem: Problem, experiment: Experiment, loss: LossSettings) -> float:
    """Processor time of a step with this loss, by that of a step of plain denoising.

    The two take turns, so that a machine which is busy for a while slows both; median of the turns.
    """
    first = make_trainer(problem, experiment, loss, 0)
    plain = make_trainer(problem, experiment, LossSettings("denoising"), 0)
    for trainer in (first, plain):
        _time_steps(trainer)
    turns = [_time_steps(first) / _time_steps(plain) for _ in range(_TURNS)]
    return statistics.median(turns)


def _time_steps(trainer: Trainer) -> float:
    begin = time.process_time()
    for _ in range(_STEPS_PER_TURN):
        trainer.train_step()
    return time.process_time() - begin


def train(
    problem: Problem,
    experiment: Experiment,
    loss: LossSettings,
    seed: int,
    at: Sequence[int],
) -> dict[int, Snapshot]:
    """Train once and keep the averaged model at several steps.

    Args:
        problem: what to train on.
        experiment: the model and how it is trained.
        loss: the loss.
        seed: of initial weights, batches and noise.
        at: the steps at which to keep the model.
    """
    trainer = make_trainer(problem, experiment, loss, seed)
    spent, kept = 0.0, {}
    for stop in sorted(set(at)):
        begin = time.process_time()
        while trainer.step < stop:
            trainer.train_step()
        spent += time.process_time() - begin
        with torch.random.fork_rng(devices=[]):
            model = build_model(trainer.model_config)
        model.load_state_dict(trainer.ema.state_dict())
        kept[stop] = Snapshot(stop, spent, model.eval().requires_grad_(False))
    return kept
