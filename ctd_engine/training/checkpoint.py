"""Checkpoints: one safetensors file with the configuration inside; loading runs no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import ctd_engine
from ctd_engine import schedules
from ctd_engine._files import write_whole
from ctd_engine.schedules import Schedule
from ctd_engine.training.mlp import PointMLP
from ctd_engine.training.unet import SmallUNet

__all__ = ["Checkpoint", "build_model", "load_checkpoint", "read_checkpoint", "save_checkpoint"]

FORMAT = 1
KEY = "ctd_engine"
MODELS: dict[str, type[nn.Module]] = {"unet": SmallUNet, "mlp": PointMLP}
REQUIRED = ("format", "model", "schedule", "prediction", "shape", "step")


@dataclass(frozen=True)
class Checkpoint:
    """A trained model in evaluation mode with what is needed to sample it."""

    model: nn.Module
    schedule: Schedule
    prediction: str
    shape: tuple[int, ...]
    config: dict[str, Any]


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """The model of config {"kind": "unet" | "mlp", "arguments": {...}}, with new weights.

    Raises:
        ValueError: the kind is unknown.
    """
    kind = config.get("kind")
    if kind not in MODELS:
        raise ValueError(f"model kind must be one of {sorted(MODELS)}, got {kind!r}")
    arguments = dict(config["arguments"])
    arguments["shape"] = tuple(arguments["shape"])
    return MODELS[kind](**arguments)


def save_checkpoint(
    path: str | Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> None:
    """Write tensors and configuration, whole or not at all.

    The file is written beside its place and moved there when it is complete, so that a crash
    leaves the old one.
    """
    text = json.dumps({**config, "format": FORMAT, "version": ctd_engine.__version__})
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_whole(Path(path), lambda file: save_file(contiguous, file, metadata={KEY: text}))


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors and the configuration of a checkpoint.

    Raises:
        ValueError: not there, unreadable, truncated, or not a checkpoint of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint {path} is not there; make one with `ctd-engine train`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"checkpoint {path} cannot be read: expected a whole safetensors file, got "
            f"{path.stat().st_size} bytes ({error}); copy it again, or train anew"
        ) from error
    if KEY not in metadata:
        raise ValueError(
            f"checkpoint {path} was not written by ctd_engine: its metadata has no {KEY!r} entry, "
            f"only {sorted(metadata)}"
        )
    try:
        config = json.loads(metadata[KEY])
        missing = [name for name in REQUIRED if name not in config]
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"checkpoint {path}: its configuration is not JSON: {error}") from error
    if missing:
        raise ValueError(f"checkpoint {path}: its configuration lacks {missing}")
    if config["format"] != FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {config['format']}, this version reads {FORMAT}"
        )
    return tensors, config


def load_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], prefix: str, path: object
) -> None:
    """Load the tensors under a prefix into a model, strictly."""
    given = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in given.items()}
    wrong = sorted(
        name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name)
    )
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"checkpoint {path} is for another model: {len(wrong)} tensors differ, first {name!r}: "
            f"expected {expected.get(name, 'nothing')}, got {got.get(name, 'nothing')}"
        )
    model.load_state_dict(given)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """The averaged (EMA) model of a checkpoint, ready to sample.

    Raises:
        ValueError: see `read_checkpoint`; also when the tensors do not fit the configuration.
    """
    tensors, config = read_checkpoint(path)
    try:
        model = build_model(config["model"])
        schedule = schedules.from_config(config["schedule"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint {path}: its configuration is wrong: {error}") from error
    load_weights(model, tensors, "ema.", path)
    shape = tuple(int(size) for size in config["shape"])
    model.eval().requires_grad_(False)
    return Checkpoint(model, schedule, config["prediction"], shape, config)
