"""EDM's pickles run code when loaded: never without consent, and safetensors afterwards."""

from __future__ import annotations

import json
import math
import os
import pickle

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from ctd_engine.cli import main
from ctd_engine.integrations import edm
from ctd_engine.integrations.edm import convert_pickle

GARBAGE = (
    b"g1\n.",
    b"s.",
    b"Fx\n.",
    b"\x95" + b"\xff" * 8,
    b"G\x00.",
    b"\x8c\x01\xff.",
    b"\x80\xff",
)


class Network(nn.Module):
    """Weights, a buffer, weights that share memory, and EDM's record of its arguments."""

    def __init__(self, size, depth=1, **others):
        super().__init__()
        self.init_args = (size,)
        self.init_kwargs = {"depth": depth, **others}
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in range(depth))
        self.again = self.layers[0]
        self.register_buffer("levels", torch.arange(6.0)[::2])
        self.img_channels, self.img_resolution = 1, 2

    def forward(self, x, sigma, class_labels=None):
        out = x.flatten(1)
        for layer in self.layers:
            out = torch.tanh(layer(out))
        return out.view_as(x)


class Plain(nn.Linear):
    """Says nothing of its arguments, as EDM's classes may."""

    @property
    def init_kwargs(self):
        raise AssertionError


class Evil:
    """A pickle that makes a folder where it is loaded."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


def pickled(path, content):
    path.write_bytes(pickle.dumps(content))
    return path


def test_nothing_runs_without_consent(tmp_path):
    """The file is live: with consent it does run."""
    source, out, trace = tmp_path / "evil.pkl", tmp_path / "out.safetensors", tmp_path / "trace"
    pickled(source, {"ema": Evil(trace)})
    for consent in ({}, {"i_trust_this_file": False}, {"i_trust_this_file": "yes"}):
        with pytest.raises(ValueError, match=r"was not loaded: a pickle is a program, .* any code"):
            convert_pickle(source, out, **consent)
    result = CliRunner().invoke(main, ["convert-edm", str(source), str(out)])
    assert result.exit_code == 2
    assert "--i-trust-this-file" in result.stderr
    assert not trace.exists()
    assert not out.exists()
    with pytest.raises(ValueError, match=r"'ema' of .* must be a torch.nn.Module, got NoneType"):
        convert_pickle(source, out, i_trust_this_file=True)
    assert trace.exists()
    assert not out.exists()


def test_the_network_comes_back(tmp_path):
    torch.manual_seed(0)
    network = Network(4, depth=2, sigma_max=80.0)
    source = pickled(tmp_path / "net.pkl", {"ema": network, "loss_fn": None})
    out = tmp_path / "net.safetensors"
    config = convert_pickle(source, out, i_trust_this_file=True)
    assert config == {
        "class": "Network",
        "init_args": [4],
        "init_kwargs": {"depth": 2, "sigma_max": 80.0},
    }
    with safe_open(out, framework="pt") as file:
        assert json.loads(file.metadata()["ctd_engine.edm"]) == config
    again = Network(*config["init_args"], **config["init_kwargs"])
    again.load_state_dict(load_file(out))
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    samples = [
        edm.sampler(net, num_steps=3, window_size=2).sample(1, seed=0).samples
        for net in (network, again)
    ]
    assert torch.equal(*samples)
    # nothing is left beside the result
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.pkl", "net.safetensors"]


def test_the_command(tmp_path):
    source, out = pickled(tmp_path / "net.pkl", {"other": Network(4)}), tmp_path / "net.safetensors"
    arguments = ["convert-edm", str(source), str(out), "--i-trust-this-file", "--key", "other"]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["class"] == "Network"
    assert "levels" in load_file(out)
    result = CliRunner().invoke(main, arguments)
    assert "Network, made of {'depth': 1}" in result.output


def test_what_is_not_told(tmp_path):
    out = tmp_path / "out.safetensors"
    source = pickled(tmp_path / "plain.pkl", {"ema": Plain(2, 2)})
    config = convert_pickle(source, out, i_trust_this_file=True)
    assert config == {"class": "Plain", "init_args": None, "init_kwargs": None}
    odd = Network(4, dtype=torch.float16, sigma_max=math.inf)
    config = convert_pickle(pickled(source, {"ema": odd}), out, i_trust_this_file=True)
    assert config["init_kwargs"] == {"depth": 1, "dtype": "torch.float16", "sigma_max": math.inf}


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    source, out = pickled(tmp_path / "net.pkl", {"ema": Network(4)}), tmp_path / "out.safetensors"
    out.write_bytes(b"old")

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("ctd_engine.integrations._edm_convert.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        convert_pickle(source, out, i_trust_this_file=True)
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.pkl", "out.safetensors"]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_the_command_explains_garbage(tmp_path, garbage):
    path = tmp_path / "file.pkl"
    path.write_bytes(garbage)
    arguments = ["convert-edm", str(path), str(tmp_path / "out"), "--i-trust-this-file"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "must be one of EDM's pickles" in result.stderr


@pytest.mark.parametrize(
    "content, error, match",
    [
        (
            b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n.",
            RuntimeError,
            "No module named 'torch_utils'; EDM's pickles need its modules torch_utils and dnnlib",
        ),
        (b"cos\nno_such_function\n.", RuntimeError, "needs code that cannot be imported here"),
        (b"", ValueError, "cannot be unpickled"),
        (b"not a pickle", ValueError, "must be one of EDM's pickles"),
        # unpickled, these raise UnpicklingError, IndexError, ValueError, OverflowError and others
        *[
            (garbage, ValueError, "must be one of EDM's pickles, .* cannot be unpickled: .*Error")
            for garbage in GARBAGE
        ],
        (pickle.dumps([1]), ValueError, "must hold a dict with the network under 'ema', got list"),
        (pickle.dumps({"net": 1}), ValueError, r"under 'ema', got \['net'\]"),
        (pickle.dumps({"ema": 1}), ValueError, "must be a torch.nn.Module, got int"),
        (None, ValueError, "path must be a file, and .* is not there"),
    ],
)
def test_rejects(tmp_path, content, error, match):
    path, out = tmp_path / "file.pkl", tmp_path / "out.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=match):
        convert_pickle(path, out, i_trust_this_file=True)
    assert not out.exists()
