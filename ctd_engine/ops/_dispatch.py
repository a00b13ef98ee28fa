"""Which implementation of an op runs. One place, so that a new back-end is added once."""

from __future__ import annotations

import importlib
import os
from functools import cache

import torch

from ctd_engine import _ext

__all__ = ["BACKENDS", "check_name", "resolve", "triton_unavailable_reason", "uses_interpreter"]

BACKENDS = ("reference", "cpp", "triton")
STATE_DTYPES = (torch.float32, torch.float64)


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


def _reasons_against_triton(*tensors: torch.Tensor | None) -> list[str]:
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


def _suits_cpp(state: torch.Tensor | None) -> bool:
    # addresses are handed over: no gradient is recorded, and nothing is traced
    return (
        state is not None
        and state.device.type == "cpu"
        and state.dtype in STATE_DTYPES
        and not (state.requires_grad and torch.is_grad_enabled())
        and not torch.compiler.is_compiling()
    )


def _reasons_against_cpp(has_cpp: bool, *tensors: torch.Tensor | None) -> list[str]:
    if not has_cpp:
        return ["this operation has no C++ kernel; leave backend out, or name another"]
    reasons = []
    if _ext.unavailable_reason() is not None:
        reasons.append(
            f"the compiled extension ctd_engine._C cannot be loaded ({_ext.unavailable_reason()}): "
            "install a C++ compiler and reinstall the package with CTD_BUILD_EXT=1"
        )
    others = sorted({t.device.type for t in tensors if t is not None} - {"cpu"})
    if others:
        reasons.append(f"the tensors are on {' and '.join(others)} and C++ needs them on the cpu")
    state = tensors[0]
    if state is not None and state.dtype not in STATE_DTYPES:
        reasons.append(f"states must be of {list(STATE_DTYPES)}, got {state.dtype}")
    if state is not None and state.requires_grad and torch.is_grad_enabled():
        reasons.append("a gradient is asked for, which the C++ kernels do not record")
    if torch.compiler.is_compiling():
        reasons.append("torch.compile cannot trace it; use the reference in compiled code")
    return reasons


def check_name(backend: str | None) -> None:
    """Raise ValueError unless `backend` is None or the name of a back-end."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend must be None or one of {list(BACKENDS)}, got {backend!r}")


def resolve(backend: str | None, *tensors: torch.Tensor | None, has_cpp: bool = False) -> str:
    """The back-end that runs, unless one is named the fastest: see `backend` of the operations.

    That is Triton where all tensors are on a CUDA device, C++ where the first is a state on the CPU
    in fp32 or fp64 and the operation `has_cpp` kernels, else the reference.

    Raises:
        ValueError: an unknown name.
        RuntimeError: the named one cannot run on these tensors; the message lists every reason.
    """
    check_name(backend)
    if backend == "reference":
        return backend
    if backend is None:
        if has_cpp and _suits_cpp(tensors[0]):
            return "cpp" if _ext.load() is not None else "reference"
        on_gpu = all(t is None or t.device.type == "cuda" for t in tensors)
        return "triton" if on_gpu and triton_unavailable_reason() is None else "reference"
    if backend == "cpp":
        reasons = _reasons_against_cpp(has_cpp, *tensors)
    else:
        reasons = _reasons_against_triton(*tensors)
    if reasons:
        listed = "".join(f"\n    - {reason}" for reason in reasons)
        raise RuntimeError(f'backend "{backend}" cannot run on these inputs{listed}')
    return backend
