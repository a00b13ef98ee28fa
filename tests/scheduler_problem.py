"""Small window schedulers of either implementation, for several test files."""

from __future__ import annotations

import os

import numpy as np
import pytest

from ctd_engine import _ext
from ctd_engine.scheduling import make_scheduler

# with CTD_REQUIRE_EXT=1 a missing extension fails the tests instead of skipping them
NEEDS_EXTENSION = pytest.mark.skipif(
    _ext.unavailable_reason() is not None and os.environ.get("CTD_REQUIRE_EXT") != "1",
    reason=f"the extension is not built: {_ext.unavailable_reason()}",
)
BACKENDS = [pytest.param("cpp", marks=NEEDS_EXTENSION), "python"]

DEFAULTS = dict(
    num_samples=3,
    num_nodes=10,
    window_size=4,
    max_rows=100,
    num_slots=3,
    first_length=4,
    max_rounds=10,
    lockstep=False,
)


def make(backend, **changes):
    return make_scheduler(**{**DEFAULTS, **changes}, backend=backend)


def step(scheduler, accepted, finite=None):
    lengths = scheduler.plan().length
    finite = lengths if finite is None else np.array(finite)
    return scheduler.step(np.minimum(np.array(accepted), lengths), finite)
