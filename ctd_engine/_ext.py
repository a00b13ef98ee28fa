"""The compiled extension: found when it is first needed, with the reason when it is not there."""

from __future__ import annotations

import importlib
import os
import warnings
from functools import cache
from types import ModuleType

__all__ = ["cuda_unavailable_reason", "load", "unavailable_reason"]


@cache
def _import() -> tuple[ModuleType | None, str | None]:
    try:
        return importlib.import_module("ctd_engine._C"), None
    except ImportError as error:
        return None, str(error)


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def unavailable_reason() -> str | None:
    """Why the extension cannot be loaded; None when it can."""
    return _import()[1]


def cuda_unavailable_reason() -> str | None:
    """Why the extension has no scheduler for CUDA devices; None when it has one."""
    module, reason = _import()
    if module is None:
        return f"the compiled extension ctd_engine._C cannot be loaded: {reason}"
    if not module.has_cuda:
        return (
            "the extension is built without its CUDA part: put nvcc on the PATH or set CUDA_HOME, "
            "and reinstall the package with CTD_BUILD_CUDA=1"
        )
    return None


def load(*, required: bool = False) -> ModuleType | None:
    """The extension, or None with one warning per process.

    Args:
        required: raise instead. `CTD_REQUIRE_EXT=1` in the environment requires it everywhere.

    Raises:
        RuntimeError: it is required and cannot be loaded.
    """
    module, reason = _import()
    if module is not None:
        return module
    message = (
        f"the compiled extension ctd_engine._C cannot be loaded: {reason}. Install a C++ compiler "
        "and reinstall the package with CTD_BUILD_EXT=1 to build it"
    )
    if required or os.environ.get("CTD_REQUIRE_EXT") == "1":
        raise RuntimeError(message)
    _warn_once(
        f"{message}; the Python scheduler and the PyTorch operations are used meanwhile, with the "
        "same results"
    )
    return None
