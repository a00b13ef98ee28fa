"""Builds the C++ extension; everything else is in pyproject.toml.

CTD_BUILD_EXT: 1 builds it, 0 leaves it out, auto (default) leaves it out only when there is no C++
compiler. A compile error is fatal in every case.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sysconfig

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

SOURCES = ["csrc/bindings.cpp", "csrc/window_scheduler.cpp"]
HEADERS = ["csrc/window_policy.h", "csrc/window_scheduler.h"]


def compiler() -> str:
    """The command that setuptools will compile C++ with."""
    command = os.environ.get("CXX") or os.environ.get("CC") or sysconfig.get_config_var("CXX")
    return shlex.split(command or "c++")[0]


def wants_extension() -> bool:
    choice = os.environ.get("CTD_BUILD_EXT", "auto")
    if choice not in ("0", "1", "auto"):
        raise SystemExit(f"CTD_BUILD_EXT must be 0, 1 or auto, got {choice!r}")
    if choice == "auto" and shutil.which(compiler()) is None:
        print(
            f"ctd_engine: WARNING: no C++ compiler ({compiler()!r} is not found), so the extension "
            "is left out and the Python scheduler serves; CTD_BUILD_EXT=1 insists on building it",
            flush=True,
        )
        return False
    return choice != "0"


extension = Pybind11Extension(
    "ctd_engine._C",
    SOURCES,
    depends=HEADERS,
    include_dirs=["csrc"],
    cxx_std=17,
    extra_compile_args=["-O3", "-Wall", "-Wextra"] if os.name == "posix" else [],
)

setup(
    ext_modules=[extension] if wants_extension() else [],
    cmdclass={"build_ext": build_ext},
)
