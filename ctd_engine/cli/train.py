"""ctd-engine train"""

from __future__ import annotations

from pathlib import Path

import click
import torch

from ctd_engine.cli._common import emit, json_option, one_line_errors
from ctd_engine.training.config import LOSSES, TrainConfig
from ctd_engine.training.data import load_data
from ctd_engine.training.trainer import Trainer

__all__ = ["train"]

_DEFAULT = TrainConfig()


@click.command()
@click.option("--data", required=True, help='"digits", a .csv file of points, or an image folder.')
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Checkpoint to write.")
@click.option("--loss", type=click.Choice(LOSSES), default=_DEFAULT.loss, show_default=True)
@click.option("--steps", type=int, default=_DEFAULT.steps, show_default=True)
@click.option("--batch-size", type=int, default=_DEFAULT.batch_size, show_default=True)
@click.option("--lr", type=float, default=_DEFAULT.lr, show_default=True, help="Learning rate.")
@click.option("--width", type=int, default=_DEFAULT.width, show_default=True, help="Model width.")
@click.option(
    "--contrastive-weight", type=float, default=_DEFAULT.contrastive_weight, show_default=True
)
@click.option(
    "--temperature",
    type=float,
    default=_DEFAULT.temperature,
    show_default=True,
    help="Of the contrastive loss; 1 is the paper's.",
)
@click.option("--schedule", default=_DEFAULT.schedule, show_default=True, help="Noise schedule.")
@click.option(
    "--prediction", default=_DEFAULT.prediction, show_default=True, help="What the model returns."
)
@click.option("--ema-decay", type=float, default=_DEFAULT.ema_decay, show_default=True)
@click.option("--seed", type=int, default=_DEFAULT.seed, show_default=True)
@click.option("--save-every", type=int, default=1000, show_default=True, help="Steps.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--resume", is_flag=True, help="Go on from --out, with the settings inside it.")
@click.option("--overwrite", is_flag=True, help="Replace an existing --out.")
@click.option(
    "--export",
    type=click.Path(path_type=Path),
    help="Also write the averaged weights alone, small and enough to sample.",
)
@json_option
@one_line_errors
def train(
    data: str,
    out: Path,
    loss: str,
    steps: int,
    batch_size: int,
    lr: float,
    width: int,
    contrastive_weight: float,
    temperature: float,
    schedule: str,
    prediction: str,
    ema_decay: float,
    seed: int,
    save_every: int,
    device: str,
    resume: bool,
    overwrite: bool,
    export: Path | None,
    as_json: bool,
) -> None:
    """Train a denoiser; Ctrl-C keeps the checkpoint and --resume goes on exactly."""
    if resume and overwrite:
        raise ValueError("give either --resume or --overwrite, not both")
    if out.exists() and not (resume or overwrite):
        raise ValueError(f"--out {out} exists; use --resume to go on or --overwrite to replace it")
    if save_every < 1:
        raise ValueError(f"--save-every must be at least 1, got {save_every}")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: the folder {out.parent} is not there; make it first")
    dataset = load_data(data)
    if resume:
        trainer = Trainer.resume(out, dataset, device)
    else:
        config = TrainConfig(
            steps=steps,
            batch_size=min(batch_size, len(dataset.x)),
            lr=lr,
            loss=loss,
            contrastive_weight=contrastive_weight,
            temperature=temperature,
            width=width,
            prediction=prediction,
            schedule=schedule,
            ema_decay=ema_decay,
            seed=seed,
        )
        trainer = Trainer(dataset, config, torch.device(device))
    result = trainer.run(out, save_every=save_every, progress=not as_json)
    if export is not None and not result.interrupted:
        trainer.save(export, ema_only=True)
    values = {
        "checkpoint": str(out),
        "step": result.step,
        "steps": trainer.config.steps,
        "loss": result.loss,
        "interrupted": result.interrupted,
    }
    text = f"{out}: step {result.step} of {trainer.config.steps}, loss {result.loss:.4f}"
    if result.interrupted:
        text += "\ninterrupted; go on with the same command and --resume"
    emit(values, text, as_json)
    if result.interrupted:
        raise SystemExit(130)
