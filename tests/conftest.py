"""Settings for every test; the interpreter switch must come before any kernel is imported."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# small tensors: a second thread costs more than it gives
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan():
    """torch.empty is filled with NaN, so that reading what was never written turns tests red."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def pipeline():
    """Makes diffusers pipelines and gives them back as they were."""
    from parallel_pipelines import lend

    yield from lend()
