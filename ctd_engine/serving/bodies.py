"""What a client may ask for: JSON in, `Request` out, or the reason why not."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import torch

from ctd_engine.engine import Request

__all__ = ["BadBodyError", "Limits", "parse"]


class BadBodyError(ValueError):
    """A request that is refused; the message is for the client."""


@dataclass(frozen=True)
class Limits:
    """How much one client's request may ask for.

    Args:
        body_bytes: size of the body.
        num_samples: samples of a request.
        num_steps: solver steps; a table is made for each number of them.
        window_size: points per window, memory for each of which is taken.
        kept_results: results that wait to be fetched; the oldest go first.
        kept_bytes: of their samples, on the engine's device; the newest is kept in any case.
    """

    body_bytes: int = 65536
    num_samples: int = 64
    num_steps: int = 4000
    window_size: int = 256
    kept_results: int = 256
    kept_bytes: int = 2**30


# name -> kinds of JSON values
NUMBER = (int, float)
FIELDS: dict[str, tuple[type, ...]] = {
    "num_samples": (int,),
    "seed": (int,),
    "seeds": (list,),
    "solver": (str,),
    "num_steps": (int,),
    "clip_x0": NUMBER,
    "solver_options": (dict,),
    "window_size": (int,),
    "tolerance": NUMBER,
    "method": (str,),
    "guess": (str,),
    "adaptive_window": NUMBER,
    "far_stride": (int,),
    "max_rounds": (int,),
    "cond": (dict,),
    "guidance_scale": NUMBER,
    "priority": NUMBER,
    "deadline_s": NUMBER,
}


def parse(body: bytes, limits: Limits, defaults: dict[str, Any]) -> Request:
    """A request from a JSON object with the fields of `ctd_engine.Request`.

    `cond` holds a list with one entry per sample for every keyword argument of the model.

    Raises:
        BadBodyError: no JSON, an unknown field, a wrong kind of value, or too much.
    """
    try:
        given = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadBodyError(f"the body must be a JSON object: {error}") from None
    if not isinstance(given, dict):
        raise BadBodyError(f"the body must be a JSON object, got {_kind(given)}")
    unknown = sorted(set(given) - set(FIELDS))
    if unknown:
        raise BadBodyError(f"unknown field {unknown[0]!r}; there are {', '.join(FIELDS)}")
    for name, value in given.items():
        kinds = FIELDS[name]
        if isinstance(value, bool) or not isinstance(value, kinds):
            wanted = " or ".join(_kind(kind()) for kind in kinds)
            raise BadBodyError(f"{name} must be {wanted}, got {_kind(value)}")
    for name in ("num_samples", "num_steps", "window_size"):
        most = getattr(limits, name)
        if given.get(name, 0) > most:
            raise BadBodyError(f"{name} must be at most {most} here, got {given[name]}")
    arguments = {**defaults, **given}
    arguments["cond"] = _tensors(arguments.get("cond"))
    try:
        return Request(**arguments)
    except (ValueError, TypeError) as error:
        raise BadBodyError(str(error)) from None


def _tensors(cond: dict[str, Any] | None) -> dict[str, torch.Tensor] | None:
    if cond is None:
        return None
    tensors = {}
    for name, value in cond.items():
        if not isinstance(value, list):
            raise BadBodyError(
                f"cond[{name!r}] must be a list with an entry per sample, got {_kind(value)}"
            )
        try:
            tensor = torch.tensor(value)
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise BadBodyError(f"cond[{name!r}] must hold numbers: {error}") from None
        if tensor.dtype == torch.bool or not math.prod(tensor.shape):
            raise BadBodyError(f"cond[{name!r}] must hold numbers")
        tensors[name] = tensor
    return tensors


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    if value is None:
        return "null"
    return kinds.get(type(value), "an integer" if isinstance(value, int) else "a number")
