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


def random_sizes(rng):
    """From one slot and one row to more slots than samples, with windows longer than N."""
    num_samples, num_nodes = int(rng.integers(1, 9)), int(rng.integers(1, 25))
    window_size, num_slots = int(rng.integers(1, 35)), int(rng.integers(1, 10))
    lockstep = bool(rng.random() < 0.25)
    if lockstep:
        num_slots += num_samples
    whole = num_samples * min(window_size, num_nodes)
    least_rows = max(num_slots, whole) if lockstep else num_slots
    return dict(
        num_samples=num_samples,
        num_nodes=num_nodes,
        window_size=window_size,
        max_rows=least_rows + int(rng.choice([0, 1, 2, 5, 17, 300])),
        num_slots=num_slots,
        first_length=int(rng.choice([1, 2, window_size, window_size + 3])),
        max_rounds=int(rng.choice([1, 3, 10, 100])),
        lockstep=lockstep,
        window_ratio=int(rng.choice([0, 0, 256, 300, 512, 1000])),
        first_window=int(rng.integers(1, window_size, endpoint=True)),
        far_stride=int(rng.choice([1, 1, 2, 3, 8, 50])),
    )
