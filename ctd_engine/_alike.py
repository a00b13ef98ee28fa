"""Ranks that must be called alike: what they compare, and whose numbers are used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from numbers import Number
from typing import Any

import torch

from ctd_engine._ranks import Ranks
from ctd_engine._request import Request
from ctd_engine._run_settings import RoundSettings
from ctd_engine.solvers import SolverTable

__all__ = ["Given", "agree", "described", "same_request"]

# num_samples, seed, seeds, x_init, noise, cond, guidance_scale: the arguments of `sample`
Given = tuple[Any, ...]
NAMES = ("num_samples", "seed", "seeds", "x_init", "noise", "cond", "guidance_scale")

# of a value in an error
LONGEST = 60


def described(settings: RoundSettings) -> dict[str, str]:
    """A sampler's arguments as text that is equal where the sampling is; devices may differ."""
    own = {
        field.name: repr(getattr(settings, field.name))
        for field in fields(settings)
        if field.name not in ("table", "device", "graphs", "tells_points")
    }
    return {**own, "solver": _digest(settings.table)}


def _digest(table: SolverTable) -> str:
    summed = hashlib.sha256()
    parts = (table,) if table.rule is None else (table, table.rule)
    for value in (getattr(part, field.name) for part in parts for field in fields(part)):
        if isinstance(value, torch.Tensor):
            summed.update(value.numpy().tobytes())
        elif isinstance(value, (str, int, float, bool)):
            summed.update(repr(value).encode())
    return f"{table.name} with {table.num_nodes} nodes, digest {summed.hexdigest()[:12]}"


def agree(ranks: Ranks, error: Exception | None, told: Mapping[str, str]) -> None:
    """Go on only if every rank does and says the same of everything.

    Raises:
        ValueError: the same on all ranks, with the names and values that differ.
    """
    words = ranks.settle(error, dict(told))
    names = dict.fromkeys(name for word in words for name in word)
    differences = []
    for name in names:
        values = [_shortened(word.get(name, "not given")) for word in words]
        full = [word.get(name) for word in words]
        other = next((rank for rank, value in enumerate(full) if value != full[0]), None)
        if other is not None:
            differences.append(
                f"{name} is {values[0]} on rank 0 and {values[other]} on rank {other}"
            )
    if differences:
        raise ValueError(
            "the ranks of process_group must be called alike: " + "; ".join(differences)
        )


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def same_request(
    ranks: Ranks, make: Callable[..., Request], given: Given, told: Mapping[str, str]
) -> Request:
    """The same request on all ranks, of arguments that were compared.

    Seeds that nobody gave, x_init, noise and conditioning are those of rank 0: text encoders may
    differ in a last bit, and random numbers in all of them. A noise that is a callable is each
    rank's own, and must give the same numbers everywhere.
    """
    named = dict(zip(NAMES, given, strict=True))
    agree(ranks, None, {**told, **{name: _form(value) for name, value in named.items()}})
    if named["seed"] is None and named["seeds"] is None:
        named["seed"] = ranks.exchange(int(torch.randint(2**63 - 1, ())))[0]
    for name in ("x_init", "noise"):
        if isinstance(named[name], torch.Tensor):
            named[name] = _of_rank_0(ranks, named[name])
    request = error = None
    try:
        request = make(*named.values())
    except Exception as caught:
        error = caught
    tensors = {} if request is None else request.denoiser.tensors
    agree(ranks, error, {name: _form(value) for name, value in tensors.items()})
    assert request is not None
    own = replace(request, denoiser=request.denoiser.own())
    for tensor in own.denoiser.tensors.values():
        tensor.copy_(_of_rank_0(ranks, tensor))
    return own


def _of_rank_0(ranks: Ranks, tensor: torch.Tensor) -> torch.Tensor:
    shared = tensor.detach().to(ranks.device, copy=True).contiguous()
    if shared.numel() > 0:
        # bytes, whatever the dtype
        ranks.broadcast_(shared.view(-1).view(torch.uint8))
    return shared


def _form(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return repr({name: _form(inner) for name, inner in sorted(value.items())})
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(_form(inner) for inner in value)}]"
    if value is None or isinstance(value, (str, Number)):
        return repr(value)
    # an address would differ
    return type(value).__name__
