"""The C++ operations where the system gives them no threads."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ctd_engine import _ext

pytestmark = [
    pytest.mark.skipif(_ext.load() is None, reason=f"no extension: {_ext.unavailable_reason()}"),
    pytest.mark.skipif(sys.platform != "linux", reason="limits its memory as Linux does"),
]

# room for the result, which takes 1 MiB, but for no thread's stack
SCRIPT = """
import resource
import torch
from ctd_engine.noise import philox_normal

def normals(num_threads):
    torch.set_num_threads(num_threads)
    return philox_normal(torch.arange(4), torch.arange(4), 2**16)

expected = normals(1)
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 2**19, resource.RLIM_INFINITY))
found = normals(4)
# torch's own comparison would need its threads
torch.set_num_threads(1)
assert torch.equal(found, expected)
"""


def test_work_is_done_without_threads_that_cannot_be_started():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
