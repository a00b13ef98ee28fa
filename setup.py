"""Builds the compiled extension; everything else is in pyproject.toml.

CTD_BUILD_EXT: 1 builds the scheduler and the sampling operations in C++, 0 leaves them out, auto
(default) leaves them out only when there is no C++ compiler or no pybind11. CTD_BUILD_CUDA: the
same for the CUDA scheduler among them, which needs nvcc, found in CUDA_HOME or on the PATH, but no
GPU. A compile error is fatal in every case.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = [
    "csrc/bindings.cpp",
    "csrc/cpu/bindings.cpp",
    "csrc/cpu/normals.cpp",
    "csrc/cpu/picard_update.cpp",
    "csrc/cpu/predict_guess.cpp",
    "csrc/cpu/rounds.cpp",
    "csrc/cpu/rounds_bindings.cpp",
    "csrc/cpu/rows.cpp",
    "csrc/cpu/secant_slopes.cpp",
    "csrc/window_scheduler.cpp",
]
HEADERS = [
    "csrc/cpu/arguments.h",
    "csrc/cpu/bindings.h",
    "csrc/cpu/compiler.h",
    "csrc/cpu/normals.h",
    "csrc/cpu/ops.h",
    "csrc/cpu/parallel.h",
    "csrc/cpu/rounds.h",
    "csrc/host_block.h",
    "csrc/python_values.h",
    "csrc/schedule.h",
    "csrc/window_policy.h",
    "csrc/window_scheduler.h",
    "csrc/window_state.h",
]
CUDA_SOURCE = "csrc/cuda/window_scheduler.cu"
CUDA_HEADER = "csrc/cuda/window_scheduler.h"
CUDA_ARCHITECTURES = ("80", "90", "100")
FLAGS = ["-O3", "-Wall", "-Wextra", "-pthread"]
# each product is rounded, as in PyTorch; nobody looks at errno or at traps
FLAGS += ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]


def choice(variable: str) -> str:
    value = os.environ.get(variable, "auto")
    if value not in ("0", "1", "auto"):
        raise SystemExit(f"{variable} must be 0, 1 or auto, got {value!r}")
    return value


def compiler() -> str:
    """The command that setuptools will compile C++ with."""
    command = os.environ.get("CXX") or os.environ.get("CC") or sysconfig.get_config_var("CXX")
    return shlex.split(command or "c++")[0]


def has_pybind11() -> bool:
    try:
        import pybind11  # noqa: F401 (only whether it is there)
    except ImportError:
        return False
    return True


def wants_extension() -> bool:
    if choice("CTD_BUILD_EXT") != "auto":
        return choice("CTD_BUILD_EXT") == "1"
    missing = None
    if shutil.which(compiler()) is None:
        missing = f"no C++ compiler ({compiler()!r} is not found)"
    elif not has_pybind11():
        missing = "no pybind11"
    if missing is not None:
        print(
            f"ctd_engine: WARNING: {missing}, so the extension is left out and the Python "
            "scheduler and the PyTorch operations serve; CTD_BUILD_EXT=1 insists on building it",
            flush=True,
        )
    return missing is None


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    in_home = shutil.which("nvcc", path=str(Path(home, "bin"))) if home else None
    return in_home or shutil.which("nvcc")


def runtime_folders(nvcc: str) -> list[str]:
    """Where this nvcc would look for CUDA's static runtime, if it is there."""
    done = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=True
    )
    (libraries,) = re.findall(r"LIBRARIES=(.*)", done.stderr)
    folders = re.findall(r'-L([^"\s]+)', libraries)
    return [folder for folder in folders if Path(folder, "libcudart_static.a").exists()]


def wants_cuda() -> bool:
    if choice("CTD_BUILD_CUDA") == "0":
        return False
    nvcc = find_nvcc()
    missing = None
    if nvcc is None:
        missing = "no nvcc (neither in CUDA_HOME nor on the PATH)"
    elif not runtime_folders(nvcc):
        missing = f"no libcudart_static.a beside {nvcc}"
    if missing is None:
        return True
    if choice("CTD_BUILD_CUDA") == "1":
        raise SystemExit(f"ctd_engine: {missing}, and CTD_BUILD_CUDA=1 insists on the CUDA part")
    print(
        f"ctd_engine: {missing}, so the CUDA part of the extension is left out; "
        "CTD_BUILD_CUDA=1 insists on building it",
        flush=True,
    )
    return False


def compile_cuda(nvcc: str, target: Path, include_dirs: list[str]) -> None:
    """Machine code for every architecture that this nvcc knows, and PTX for those after it."""
    done = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    known = [arch for arch in CUDA_ARCHITECTURES if f"compute_{arch}" in done.stdout.split()]
    if not known:
        raise SystemExit(
            f"ctd_engine: {nvcc} knows none of the architectures {list(CUDA_ARCHITECTURES)}; put a "
            "newer one on the PATH, or leave the CUDA part out with CTD_BUILD_CUDA=0"
        )
    codes = [(number, f"sm_{number}") for number in known]
    codes.append((known[-1], f"compute_{known[-1]}"))
    command = [nvcc, "-std=c++17", "-O3", "--threads", str(len(known)), "-Xcompiler"]
    command += ["-fPIC,-Wall,-Wextra", *(f"-I{folder}" for folder in include_dirs)]
    for number, code in codes:
        command += ["-gencode", f"arch=compute_{number},code={code}"]
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([*command, "-c", CUDA_SOURCE, "-o", str(target)], check=True)


class BuildWithCuda(build_ext):
    """Compiles the CUDA source with nvcc and links its runtime statically: no driver at import."""

    def build_extension(self, extension: Extension) -> None:
        if CUDA_SOURCE in extension.depends:
            nvcc = find_nvcc()
            target = Path(self.build_temp, CUDA_SOURCE).with_suffix(".o")
            compile_cuda(nvcc, target, extension.include_dirs)
            extension.extra_objects.append(str(target))
            extension.library_dirs += runtime_folders(nvcc)
            extension.libraries += ["cudart_static", "rt", "dl"]
        super().build_extension(extension)


def make_extension() -> Extension:
    from pybind11.setup_helpers import Pybind11Extension

    is_posix = os.name == "posix"
    extension = Pybind11Extension(
        "ctd_engine._C",
        SOURCES,
        depends=list(HEADERS),
        include_dirs=["csrc"],
        cxx_std=17,
        extra_compile_args=FLAGS if is_posix else [],
        extra_link_args=["-pthread"] if is_posix else [],
    )
    if wants_cuda():
        extension.depends += [CUDA_SOURCE, CUDA_HEADER]
        extension.define_macros.append(("CTD_HAS_CUDA", None))
    return extension


setup(
    ext_modules=[make_extension()] if wants_extension() else [],
    cmdclass={"build_ext": BuildWithCuda},
)
