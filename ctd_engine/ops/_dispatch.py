"""Which implementation of an op runs. One place, so that a new back-end is added once."""

from __future__ import annotations

import importlib
import os
from functools import cache

import torch

__all__ = ["BACKENDS", "check_name", "resolve", "triton_unavailable_reason", "uses_interpreter"]

BACKENDS = ("reference", "triton")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def uses_interpreter() -> bool:
    """Whether Triton kernels run in its interpreter, on the CPU; read when kernels are imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def triton_unavailable_reason() -> str | None:
    """Why Triton cannot be imported; None when it can."""
    return _import_triton()


@cache
def _import_triton() -> str | None:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return str(error)
    return None


def _reasons_against(*tensors: torch.Tensor | None) -> list[str]:
    reasons = []
    if triton_unavailable_reason() is not None:
        reasons.append(
            f"triton cannot be imported ({triton_unavailable_reason()}): "
            "pip install 'ctd_engine[triton]'"
        )
    devices = sorted({t.device.type for t in tensors if t is not None})
    if devices != ["cuda"] and not uses_interpreter():
        reasons.append(
            f"the tensors are on {' and '.join(devices)} and Triton needs a CUDA device; set "
            "TRITON_INTERPRET=1 before importing ctd_engine to run it in the interpreter (slow, "
            "for tests)"
        )
    return reasons


def check_name(backend: str | None) -> None:
    """Raise ValueError unless `backend` is None or the name of a back-end."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend must be None or one of {list(BACKENDS)}, got {backend!r}")


def resolve(backend: str | None, *tensors: torch.Tensor | None) -> str:
    """The back-end that runs: Triton for CUDA tensors and the reference elsewhere, unless named.

    Raises:
        ValueError: an unknown name.
        RuntimeError: the named one cannot run on these tensors; the message lists every reason.
    """
    check_name(backend)
    if backend == "reference":
        return backend
    if backend is None:
        on_gpu = all(t is None or t.device.type == "cuda" for t in tensors)
        return "triton" if on_gpu and triton_unavailable_reason() is None else "reference"
    reasons = _reasons_against(*tensors)
    if reasons:
        listed = "".join(f"\n    - {reason}" for reason in reasons)
        raise RuntimeError(f'backend "{backend}" cannot run on these inputs{listed}')
    return backend
