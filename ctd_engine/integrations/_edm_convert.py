"""EDM's pickled networks to safetensors, on explicit consent. Public as `integrations.edm`'s."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from ctd_engine._files import write_whole

__all__ = ["CONFIG_KEY", "convert_pickle"]

# where a converted file has the configuration, as JSON, in its metadata
CONFIG_KEY = "ctd_engine.edm"


def convert_pickle(
    path: str | Path, out: str | Path, *, i_trust_this_file: bool = False, key: str = "ema"
) -> dict[str, Any]:
    """Turn one of EDM's pickles {"ema": network, ...} into safetensors, which runs no code.

    This alone in the package unpickles, and loading a pickle runs whatever program is in it. The
    result holds the network's state dict, and in its metadata the configuration as JSON. To load
    it, build the network from its class and

        network.load_state_dict(safetensors.torch.load_file(out))

    Args:
        path: the pickle. EDM's contain the source code of their classes and need EDM's modules
            `torch_utils` and `dnnlib` on the import path.
        out: the safetensors file, written whole or not at all; one that is there is replaced.
        i_trust_this_file: True consents to run what the file contains.
        key: which network of the pickle.

    Returns:
        The configuration: "class", "init_args" and "init_kwargs", what the network was made of.
        These two are None where it does not tell; what JSON lacks stands there as its repr.

    Raises:
        ValueError: without consent (nothing is read then), for a file that is not there or is no
            such pickle.
        RuntimeError: the modules that the pickle needs cannot be imported.
    """
    path, out = Path(path), Path(out)
    if i_trust_this_file is not True:
        raise ValueError(
            f"{path} was not loaded: a pickle is a program, and loading it runs any code that its "
            "author put in, with all your rights: it can read, change, delete and send files. If "
            "you know where the file is from and trust it, pass i_trust_this_file=True "
            "(--i-trust-this-file on the command line), best on a machine with nothing to lose"
        )
    if not path.is_file():
        raise ValueError(f"path must be a file, and {path} is not there")
    network = _network(_unpickled(path), key, path)
    config = {
        "class": type(network).__name__,
        "init_args": _told(network, "init_args"),
        "init_kwargs": _told(network, "init_kwargs"),
    }
    text = json.dumps(config, default=repr)
    # copies: weights that share memory, or a part of a larger tensor, would be refused
    tensors = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in network.state_dict().items()
    }
    write_whole(out, lambda file: save_file(tensors, file, metadata={CONFIG_KEY: text}))
    result: dict[str, Any] = json.loads(text)
    return result


def _unpickled(path: Path) -> Any:
    content = path.read_bytes()
    try:
        return pickle.loads(content)
    except (ImportError, AttributeError) as error:
        raise RuntimeError(
            f"{path} needs code that cannot be imported here: {error}; EDM's pickles need its "
            "modules torch_utils and dnnlib: run this with a checkout of EDM on PYTHONPATH"
        ) from error
    except Exception as error:
        # bytes that are no pickle end in errors of any kind
        reason = f"{type(error).__name__}: {error}" if content else "it is empty"
        raise ValueError(
            f"path must be one of EDM's pickles, and {path} cannot be unpickled: {reason}"
        ) from error


def _network(content: Any, key: str, path: Path) -> nn.Module:
    if not isinstance(content, dict) or key not in content:
        got = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} must hold a dict with the network under {key!r}, got {got}")
    network = content[key]
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"{key!r} of {path} must be a torch.nn.Module, got {type(network).__name__}"
        )
    return network


def _told(network: nn.Module, name: str) -> Any:
    try:
        return getattr(network, name, None)
    except AssertionError:
        # how EDM's classes say that they did not record it
        return None
