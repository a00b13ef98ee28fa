"""Checkpoints: whole or not at all, and clear errors for files that are not ours."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from ctd_engine import schedules
from ctd_engine.training import checkpoint as module
from ctd_engine.training.checkpoint import (
    build_model,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)

MODEL = {"kind": "mlp", "arguments": {"shape": [2], "width": 8}}
CONFIG = {
    "model": MODEL,
    "schedule": schedules.cosine(100).config,
    "prediction": "v",
    "shape": [2],
    "step": 3,
}


@pytest.fixture
def path(tmp_path):
    model = build_model(MODEL)
    file = tmp_path / "model.safetensors"
    save_checkpoint(file, {f"ema.{k}": v for k, v in model.state_dict().items()}, CONFIG)
    return file


def test_round_trip(path):
    tensors, config = read_checkpoint(path)
    loaded = load_checkpoint(path)
    assert loaded.prediction == "v"
    assert loaded.shape == (2,)
    assert torch.equal(loaded.schedule.logsnrs, schedules.cosine(100).logsnrs)
    assert not loaded.model.training
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, tensors[f"ema.{name}"])
    assert config["version"]


def test_interrupted_write_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def half(tensors, name, metadata):
        with open(name, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {}, CONFIG)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read: expected a whole"):
        load_checkpoint(path)


def test_not_there(tmp_path):
    with pytest.raises(ValueError, match="is not there"):
        load_checkpoint(tmp_path / "none.safetensors")


def test_of_another_program(path):
    save_file({"weight": torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="was not written by ctd_engine"):
        load_checkpoint(path)


def write(path, changes, tensors=None):
    config = {**CONFIG, "format": 1, **changes}
    config = {key: value for key, value in config.items() if value is not None}
    save_file(tensors or {"x": torch.zeros(1)}, path, metadata={"ctd_engine": json.dumps(config)})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"prediction": None}, r"configuration lacks \['prediction'\]"),
        ({"format": 99}, "has format 99, this version reads 1"),
        ({"model": {"kind": "gan", "arguments": {}}}, "model kind must be one of"),
        ({"model": {"kind": "mlp", "arguments": {"shape": [2], "deep": 3}}}, "unexpected keyword"),
        ({"schedule": {"name": "sawtooth"}}, "schedule must be one of"),
        ({"schedule": {}}, "needs a name"),
        ({}, "is for another model: .* tensors differ"),
    ],
    ids=str,
)
def test_wrong_configuration(path, changes, match):
    write(path, changes)
    with pytest.raises(ValueError, match=match):
        load_checkpoint(path)


def test_wrong_tensor_is_named(path):
    tensors, config = read_checkpoint(path)
    tensors["ema.out.bias"] = torch.zeros(7)
    save_checkpoint(path, tensors, config)
    with pytest.raises(ValueError, match=r"first 'out.bias': expected \(2,\), got \(7,\)"):
        load_checkpoint(path)


def test_configuration_that_is_not_json(path):
    save_file({"x": torch.zeros(1)}, path, metadata={"ctd_engine": "{"})
    with pytest.raises(ValueError, match="is not JSON"):
        load_checkpoint(path)
