"""Training: models, data, exact resume, interruption."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from ctd_engine import ContrastiveDiffusionLoss, SequentialSampler
from ctd_engine.logsnr_distributions import zeta_from_data
from ctd_engine.schedules import linear_beta
from ctd_engine.training import trainer as trainer_module
from ctd_engine.training.checkpoint import load_checkpoint, read_checkpoint
from ctd_engine.training.config import config_from
from ctd_engine.training.data import Dataset, load_data
from ctd_engine.training.mlp import PointMLP
from ctd_engine.training.trainer import TrainConfig, Trainer
from ctd_engine.training.unet import SmallUNet

SMALL = dict(batch_size=8, width=8, warmup=2)


def images(count=20):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    return Dataset("toy", torch.randn(count, 1, 4, 4, generator=generator), labels)


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.ema.parameters()])


def test_the_temperature_is_the_checkpoints(tmp_path):
    path = tmp_path / "run.safetensors"
    trainer = Trainer(images(), TrainConfig(steps=4, loss="contrastive", temperature=3.0, **SMALL))
    assert trainer.loss.temperature == 3.0
    trainer.save(path)
    assert Trainer.resume(path, images()).loss.temperature == 3.0
    # a run from before there was one went on with the paper's loss
    before = {k: v for k, v in trainer.description()["train"].items() if k != "temperature"}
    assert config_from(before).temperature == 1.0


@pytest.mark.parametrize("loss", ["denoising", "contrastive"])
def test_resumed_run_equals_uninterrupted_run(tmp_path, loss):
    config = TrainConfig(steps=8, loss=loss, num_points=4, num_draws=2, **SMALL)
    whole = Trainer(images(), config)
    whole.run(tmp_path / "whole.safetensors", progress=False)

    broken = Trainer(images(), config)
    step = broken.train_step

    def stop_after_five():
        if broken.step == 5:
            raise KeyboardInterrupt
        step()

    broken.train_step = stop_after_five
    result = broken.run(tmp_path / "broken.safetensors", progress=False)
    assert result.interrupted
    assert result.step == 5
    resumed = Trainer.resume(tmp_path / "broken.safetensors", images())
    assert resumed.config == config
    result = resumed.run(tmp_path / "broken.safetensors", progress=False)
    assert (result.step, result.interrupted) == (8, False)
    assert torch.equal(weights(whole), weights(resumed))
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_learns(tmp_path):
    """Points on a circle: the loss falls far below that of knowing nothing (1)."""
    angle = torch.arange(256) * (2 * math.pi / 256)
    data = Dataset("circle", 1.4 * torch.stack([angle.cos(), angle.sin()], dim=1), None)
    config = TrainConfig(steps=400, batch_size=64, width=16, lr=3e-3, seed=1)
    result = Trainer(data, config).run(tmp_path / "circle.safetensors", progress=False)
    assert result.loss < 0.45
    trained = load_checkpoint(tmp_path / "circle.safetensors")
    sampler = SequentialSampler(
        trained.model, shape=(2,), schedule=trained.schedule, num_steps=50, solver="ddim"
    )
    radius = sampler.sample(200, seed=0).samples.norm(dim=1)
    assert (radius - 1.4).abs().median() < 0.25


def test_seed_decides_and_global_generator_is_left_alone(tmp_path):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = Trainer(images(), TrainConfig(steps=2, seed=5, **SMALL))
    first.run(tmp_path / "a.safetensors", progress=False)
    assert torch.equal(before, torch.get_rng_state())
    second = Trainer(images(), TrainConfig(steps=2, seed=5, **SMALL))
    second.run(tmp_path / "b.safetensors", progress=False)
    third = Trainer(images(), TrainConfig(steps=2, seed=6, **SMALL))
    third.run(tmp_path / "c.safetensors", progress=False)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(third))


def test_a_loss_that_is_not_finite_stops_before_the_weights(tmp_path):
    path = tmp_path / "x.safetensors"
    trainer = Trainer(images(), TrainConfig(steps=5, **SMALL))
    trainer.save(path)
    before = path.read_bytes()
    trainer.loss = lambda *_, **__: torch.tensor(torch.nan, requires_grad=True)
    with pytest.raises(RuntimeError, match="the loss is nan at step 0"):
        trainer.run(path, progress=False)
    assert path.read_bytes() == before


def test_learning_rate_warms_up_and_decays():
    config = TrainConfig(steps=100, warmup=10, lr=1.0)
    rates = [trainer_module._learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) > 0.95
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] < 0.001
    kept = TrainConfig(steps=100, warmup=10, lr=1.0, lr_decay="none")
    assert trainer_module._learning_rate(kept, 0) == pytest.approx(0.1)
    assert trainer_module._learning_rate(kept, 99) == 1.0


def test_label_dropout_uses_the_null_label(tmp_path):
    seen = []
    trainer = Trainer(images(), TrainConfig(steps=50, label_dropout=0.5, **SMALL))
    loss = trainer.loss

    def spy(model, x, *, generator, label):
        seen.append(label)
        return loss(model, x, generator=generator, label=label)

    trainer.loss = spy
    trainer.run(tmp_path / "x.safetensors", progress=False)
    labels = torch.cat(seen)
    assert set(labels.tolist()) == {0, 1, 2, 3}
    assert 0.4 < (labels == 3).float().mean() < 0.6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unet_rows_do_not_depend_on_each_other(dtype):
    torch.manual_seed(0)
    model = SmallUNet(shape=(1, 8, 8), width=8, num_classes=10).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(5, 1, 8, 8, dtype=dtype)
    t = torch.tensor([0.0, 10.0, 500.0, 998.0, 999.0], dtype=dtype)
    label = torch.tensor([0, 3, 9, 10, 1])
    together = model(x, t, label=label)
    assert together.shape == x.shape
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], label[i : i + 1]) for i in range(5)])
    assert (together - alone).abs().max() < (1e-4 if dtype == torch.float32 else 1e-11)
    # no label is the null label; time and label matter
    assert torch.equal(model(x, t), model(x, t, label=torch.full((5,), 10)))
    assert (model(x, t.flip(0), label) - together).abs().max() > 1e-3
    assert (model(x, t, label.flip(0)) - together).abs().max() > 1e-3


def test_point_mlp():
    model = PointMLP(shape=(3,), width=16)
    assert model(torch.randn(4, 3), torch.zeros(4)).shape == (4, 3)


def test_point_mlp_with_frequencies():
    model = PointMLP(shape=(2,), width=8, num_frequencies=3)
    seen = []
    model.embed_point.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x, t = torch.tensor([[0.3, -1.2]]), torch.zeros(1)
    assert model(x, t).shape == (1, 2)
    angles = [a * f for a in (0.3, -1.2) for f in (1, 2, 4)]
    expected = [0.3, -1.2, *map(math.sin, angles), *map(math.cos, angles)]
    assert torch.allclose(seen[0], torch.tensor([expected]), atol=1e-6)


def test_model_config_survives_a_resume(tmp_path):
    points = Dataset("points", torch.randn(20, 2), None)
    arguments = {"shape": [2], "width": 12, "num_frequencies": 2}
    model_config = {"kind": "mlp", "arguments": arguments}
    trainer = Trainer(points, TrainConfig(steps=2, **SMALL), model_config=model_config)
    trainer.run(tmp_path / "a.safetensors", progress=False)
    resumed = Trainer.resume(tmp_path / "a.safetensors", points)
    assert resumed.model.embed_point.in_features == 2 * (1 + 2 * 2)
    assert torch.equal(weights(trainer), weights(resumed))
    assert load_checkpoint(tmp_path / "a.safetensors").model.out.in_features == 12


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"shape": (1, 7, 8)}, "shape must be .* both even"),
        ({"shape": (8, 8)}, "shape must be"),
        ({"shape": (1, 8, 8), "width": 12}, "width must be a multiple of 8"),
    ],
)
def test_unet_rejects(arguments, match):
    with pytest.raises(ValueError, match=match):
        SmallUNet(**arguments)


def test_digits():
    data = load_data("digits")
    assert data.x.shape == (1797, 1, 8, 8)
    assert (data.x.min(), data.x.max()) == (-1, 1)
    assert data.num_classes == 10


def test_points(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("x,y\n1,2\n3,4\n5,9\n")
    data = load_data(str(path))
    assert data.x.mean().abs() < 1e-6
    restored = data.x * data.scale + data.offset
    assert torch.allclose(restored, torch.tensor([[1.0, 2], [3, 4], [5, 9]]))


def test_images(tmp_path):
    for index in range(3):
        pixels = np.full((4, 6, 3), 100 * index, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    data = load_data(str(tmp_path))
    assert data.x.shape == (3, 3, 4, 6)
    assert data.x[0].unique().tolist() == [-1.0]
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "9.png")
    with pytest.raises(ValueError, match="all images must have one size"):
        load_data(str(tmp_path))
    (tmp_path / "9.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"9\.png: not a readable image"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "at least one line"),
        ("1,2\n3\n", "same count of numbers"),
        ("1,2\nnan,4\n", "finite numbers"),
        ("1,2\n3,four\n", "same count of numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt. input contained no data")
def test_points_rejected(tmp_path, text, match):
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=match):
        load_data(str(path))


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="which is not there"):
        load_data(str(tmp_path / "nothing.csv"))
    with pytest.raises(ValueError, match="expected images"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"steps": 0}, "steps must be an integer >= 1"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"lr_decay": "linear"}, "lr_decay must be one of"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\)"),
        ({"loss": "l1"}, 'loss must be one of "denoising"'),
        ({"schedule": "quadratic"}, "schedule must be one of"),
        ({"contrastive_weight": -1.0}, "contrastive_weight must be >= 0"),
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"batch_size": 8, "num_points": 9}, "num_points must be at most batch_size, 8, got 9"),
    ],
    ids=str,
)
def test_config_rejects(changes, match):
    with pytest.raises(ValueError, match=match):
        TrainConfig(**changes)


def test_batch_larger_than_data():
    with pytest.raises(ValueError, match="batch_size must be at most the 20 items"):
        Trainer(images(), TrainConfig(batch_size=21, width=8))


def test_export_is_enough_to_sample_but_not_to_resume(tmp_path):
    trainer = Trainer(images(), TrainConfig(steps=2, **SMALL))
    trainer.run(tmp_path / "full.safetensors", progress=False)
    trainer.save(tmp_path / "small.safetensors", ema_only=True)
    small, config = read_checkpoint(tmp_path / "small.safetensors")
    assert all(name.startswith("ema.") for name in small)
    assert config["train"]["steps"] == 2
    assert load_checkpoint(tmp_path / "small.safetensors").shape == (1, 4, 4)
    with pytest.raises(ValueError, match="holds averaged weights only"):
        Trainer.resume(tmp_path / "small.safetensors", images())
    with pytest.raises(ValueError, match="was trained on 20 items"):
        Trainer.resume(tmp_path / "full.safetensors", images(21))


def test_points_get_zeta_from_the_data_and_images_the_default():
    points = Dataset("points", torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), None)
    config = TrainConfig(steps=1, loss="contrastive", **SMALL)
    of_points, of_images = (Trainer(data, config).loss for data in (points, images()))
    assert of_points.zeta == zeta_from_data(points.x)
    assert of_points.zeta != of_images.zeta == ContrastiveDiffusionLoss(linear_beta()).zeta
