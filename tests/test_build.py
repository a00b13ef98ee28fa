"""How the package is built and imported: cheap, torch-free, and loud where something is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import ctd_engine
from ctd_engine import _ext

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
        cwd=ROOT,
    )


def setup(*, path=None, before="", **environment):
    """What setup.py would build: its extension modules, without building them."""
    code = (
        f"import setuptools, sys\n{before}\n"
        "def name(m): return m.name + '+cuda' * (('CTD_HAS_CUDA', None) in m.define_macros)\n"
        "setuptools.setup = lambda **k: print('modules', [name(m) for m in k['ext_modules']])\n"
        "exec(compile(open('setup.py').read(), 'setup.py', 'exec'))\n"
        "assert 'torch' not in sys.modules\n"
    )
    if path is not None:
        environment["PATH"] = str(path)
    return python(code, **environment)


def test_import_is_cheap():
    """No torch, no Triton, no extension until a name is used."""
    code = (
        "import sys, ctd_engine\n"
        "print([m for m in ('torch', 'triton', 'numpy', 'matplotlib', 'ctd_engine._C')"
        " if m in sys.modules])"
    )
    done = python(code)
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("[]", "", 0)


def test_the_sampler_needs_neither_triton_nor_plotting():
    code = (
        "import sys\n"
        "for name in ('triton', 'matplotlib', 'sklearn', 'scipy'): sys.modules[name] = None\n"
        "import torch\n"
        "from ctd_engine import *\n"
        "from ctd_engine import ParallelSampler, schedules\n"
        "r = ParallelSampler(lambda x, t: x, shape=(2,), schedule=schedules.linear_beta(),"
        " num_steps=5).sample(seed=0)\n"
        "assert torch.isfinite(r.samples).all()\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_public_surface():
    assert ctd_engine.__all__ == [
        "ContrastiveDiffusionLoss",
        "DenoisingLoss",
        "Engine",
        "NoiseClassifier",
        "ParallelSampler",
        "Request",
        "SampleResult",
        "SampleStats",
        "SequentialSampler",
        "SolverTable",
        "StopReason",
        "exact",
        "likelihood",
        "schedules",
        "solvers",
    ]
    for name in ctd_engine.__all__:
        assert getattr(ctd_engine, name).__doc__
    assert dir(ctd_engine) == sorted(ctd_engine.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Sampler'"):
        ctd_engine.Sampler  # noqa: B018


@pytest.mark.parametrize("name", ["setup.py", "csrc"])
def test_no_torch_in_the_build(name):
    files = [ROOT / name] if name.endswith(".py") else sorted(CSRC.rglob("*.*"))
    assert files
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "torch/" not in text, file
        assert "import torch" not in text, file


@pytest.mark.parametrize(
    ("choice", "modules"), [("0", "[]"), ("1", "['ctd_engine._C']"), ("auto", "['ctd_engine._C']")]
)
def test_build_choices(choice, modules):
    done = setup(CTD_BUILD_EXT=choice, CTD_BUILD_CUDA="0", CXX=sys.executable)
    assert done.stdout.strip() == f"modules {modules}", done.stderr


@pytest.mark.parametrize("name", ["CTD_BUILD_EXT", "CTD_BUILD_CUDA"])
def test_unknown_build_choice(name):
    done = setup(**{"CTD_BUILD_EXT": "1", name: "yes"})
    assert done.returncode != 0
    assert f"{name} must be 0, 1 or auto, got 'yes'" in done.stderr


def test_without_a_compiler_auto_leaves_the_extension_out_and_says_so(tmp_path):
    done = setup(path=tmp_path, CTD_BUILD_EXT="auto", CXX="no-such-compiler")
    assert done.stdout.count("WARNING: no C++ compiler ('no-such-compiler' is not found)") == 1
    assert done.stdout.strip().endswith("modules []")
    # asked for, it is not left out in silence
    options = dict(CTD_BUILD_EXT="1", CTD_BUILD_CUDA="0")
    done = setup(path=tmp_path, **options, CXX="no-such-compiler")
    assert done.stdout.strip() == "modules ['ctd_engine._C']", done.stderr


def test_without_pybind11_auto_leaves_the_extension_out_and_says_so():
    done = setup(CTD_BUILD_EXT="auto", CXX=sys.executable, before="sys.modules['pybind11'] = None")
    assert "WARNING: no pybind11, so the extension is left out" in done.stdout, done.stderr
    assert done.stdout.strip().endswith("modules []")


def test_without_nvcc_auto_leaves_the_cuda_part_out_and_says_so(tmp_path):
    options = dict(path=tmp_path, CTD_BUILD_EXT="1", CUDA_HOME=str(tmp_path))
    done = setup(**options, CTD_BUILD_CUDA="auto")
    assert done.stdout.splitlines() == [
        "ctd_engine: no nvcc (neither in CUDA_HOME nor on the PATH), so the CUDA part of the "
        "extension is left out; CTD_BUILD_CUDA=1 insists on building it",
        "modules ['ctd_engine._C']",
    ], done.stderr
    # asked for, it is not left out in silence
    done = setup(**options, CTD_BUILD_CUDA="1")
    assert done.returncode != 0
    assert "CTD_BUILD_CUDA=1 insists on the CUDA part" in done.stderr


NEEDS_NVCC = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")


@NEEDS_NVCC
@pytest.mark.parametrize(("choice", "suffix"), [("0", ""), ("1", "+cuda"), ("auto", "+cuda")])
def test_cuda_choices(choice, suffix):
    done = setup(CTD_BUILD_EXT="1", CTD_BUILD_CUDA=choice)
    assert done.stdout.strip() == f"modules ['ctd_engine._C{suffix}']", done.stderr


@NEEDS_NVCC
@pytest.mark.skipif(
    _ext.unavailable_reason() is not None and os.environ.get("CTD_REQUIRE_EXT") != "1",
    reason=f"the extension is not built: {_ext.unavailable_reason()}",
)
def test_nvcc_builds_the_cuda_part_that_loads_without_a_driver():
    extension = _ext.load(required=True)
    assert extension.has_cuda
    assert _ext.cuda_unavailable_reason() is None
    if shutil.which("readelf") is None:
        return
    command = ["readelf", "--wide", "--dynamic", "--dyn-syms", extension.__file__]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needed = [line for line in told.splitlines() if "(NEEDED)" in line]
    undefined = [line.split()[-1] for line in told.splitlines() if " UND " in line]
    assert needed
    assert not [line for line in needed if "cuda" in line]
    assert not [name for name in undefined if re.match(r"(__)?cu(da)?[A-Z]", name)]


@pytest.mark.skipif(
    _ext.cuda_unavailable_reason() is not None or torch.cuda.is_available(),
    reason="the extension has no CUDA part, or there is a device to launch on",
)
def test_a_launch_without_a_driver_is_an_error():
    names = ("state", "rows", "num_slots", "max_rows", "device", "stream")
    with pytest.raises(RuntimeError, match="the scheduling kernel cannot be launched: "):
        _ext.load(required=True).schedule_begin_cuda(**dict.fromkeys(names, 0))


def test_an_extension_without_its_cuda_part_says_how_to_build_it(monkeypatch):
    module = types.SimpleNamespace(has_cuda=False)
    monkeypatch.setattr(_ext, "_import", lambda: (module, None))
    assert "CTD_BUILD_CUDA=1" in _ext.cuda_unavailable_reason()
    monkeypatch.setattr(_ext, "_import", lambda: (None, "no such file"))
    assert "cannot be loaded: no such file" in _ext.cuda_unavailable_reason()


NO_EXTENSION = (
    "import sys\n"
    "sys.modules['ctd_engine._C'] = None\n"
    "from ctd_engine import ParallelSampler, schedules\n"
    "s = ParallelSampler(lambda x, t: x, shape=(2,), schedule=schedules.linear_beta(),"
    " num_steps=9{})\n"
    "print(s.sample(seed=0).samples.tolist() == s.sample(seed=0).samples.tolist())\n"
)


def test_without_the_extension_one_warning_and_the_python_twin():
    done = python(NO_EXTENSION.format(""), CTD_REQUIRE_EXT="0")
    assert done.stdout.strip() == "True", done.stderr
    assert done.stderr.count("RuntimeWarning: the compiled extension ctd_engine._C cannot be") == 1
    assert "CTD_BUILD_EXT=1" in done.stderr


@pytest.mark.parametrize(
    ("more", "environment"), [("", "1"), (', scheduler_backend="cpp"', "0")], ids=str
)
def test_a_required_extension_is_an_error(more, environment):
    done = python(NO_EXTENSION.format(more), CTD_REQUIRE_EXT=environment)
    assert done.returncode != 0
    assert "RuntimeError: the compiled extension ctd_engine._C cannot be loaded" in done.stderr


POLICY_ALONE = """
#include "window_policy.h"
int main() {
  ctd::Entry entry;
  ctd::Limits limits{10, 4, 1, 10};
  return ctd::wanted_length(entry, limits) == 1 ? 0 : 1;
}
"""


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_the_policy_stands_alone(tmp_path):
    source = tmp_path / "policy.cpp"
    source.write_text(POLICY_ALONE)
    command = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}", str(source)]
    subprocess.run([*command, "-o", str(tmp_path / "policy")], check=True)
    subprocess.run([str(tmp_path / "policy")], check=True)


@NEEDS_NVCC
def test_the_policy_compiles_for_the_device(tmp_path):
    source = tmp_path / "policy.cu"
    kernel = (
        '#include "window_policy.h"\n'
        "__global__ void k(ctd::Entry* e, ctd::Limits l, long long* out) {\n"
        "  *out = ctd::wanted_length(*e, l);\n}\n"
    )
    source.write_text(kernel)
    command = ["nvcc", "-std=c++17", "-arch=sm_90", f"-I{CSRC}", "-cubin", str(source)]
    subprocess.run([*command, "-o", str(tmp_path / "policy.cubin")], check=True)
    assert (tmp_path / "policy.cubin").stat().st_size > 0
