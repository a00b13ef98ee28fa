"""ctd-engine info"""

from __future__ import annotations

import importlib.metadata
import platform

import click
import torch

import ctd_engine
from ctd_engine import _ext
from ctd_engine.cli._common import emit, json_option, one_line_errors
from ctd_engine.ops._dispatch import triton_unavailable_reason, uses_interpreter
from ctd_engine.scheduling.device import no_device_reason

__all__ = ["info"]


def _backends() -> dict[str, str | None]:
    """Each back-end with the reason why it is not active; None when it is."""
    triton = triton_unavailable_reason()
    if triton is None and not torch.cuda.is_available() and not uses_interpreter():
        triton = "the kernels need a CUDA device (TRITON_INTERPRET=1 runs them slowly on the CPU)"
    cuda = no_device_reason()
    return {
        "reference (PyTorch)": None,
        "window scheduler in CUDA": _ext.cuda_unavailable_reason() or cuda,
        "window scheduler in C++": _ext.unavailable_reason(),
        "window scheduler in Python": None,
        "C++ kernels": _ext.unavailable_reason(),
        "Triton kernels": triton,
        "cuda": cuda,
    }


@click.command()
@json_option
@one_line_errors
def info(as_json: bool) -> None:
    """Tell versions, which back-ends are active and why others are not."""
    packages = ("torch", "numpy", "triton", "pybind11", "safetensors", "matplotlib", "scikit-learn")
    versions: dict[str, str | None] = {"ctd_engine": ctd_engine.__version__}
    versions["python"] = platform.python_version()
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    backends = _backends()
    lines = [f"{name:<14}{version or 'not installed'}" for name, version in versions.items()]
    lines.append("")
    lines += [
        f"{name:<28}{'active' if reason is None else f'off: {reason}'}"
        for name, reason in backends.items()
    ]
    values = {
        "versions": versions,
        "backends": {
            name: {"active": reason is None, "reason": reason} for name, reason in backends.items()
        },
        "threads": torch.get_num_threads(),
    }
    emit(values, "\n".join(lines), as_json)
