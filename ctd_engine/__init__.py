"""Contrastively trained diffusion models, and the engine that samples them parallel in time.

Importing this package touches no device, compiles nothing and needs neither Triton nor the
extension; each public name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctd_engine import exact, likelihood, schedules, solvers
    from ctd_engine.engine import Engine, Request
    from ctd_engine.likelihood import NoiseClassifier
    from ctd_engine.losses import ContrastiveDiffusionLoss, DenoisingLoss
    from ctd_engine.result import SampleResult, SampleStats, StopReason
    from ctd_engine.sampler import ParallelSampler, SequentialSampler
    from ctd_engine.solvers import SolverTable

__version__ = "0.1.0"

__all__ = [
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

_HOMES = {
    "ContrastiveDiffusionLoss": "losses",
    "DenoisingLoss": "losses",
    "Engine": "engine",
    "NoiseClassifier": "likelihood",
    "ParallelSampler": "sampler",
    "Request": "engine",
    "SampleResult": "result",
    "SampleStats": "result",
    "SequentialSampler": "sampler",
    "SolverTable": "solvers",
    "StopReason": "result",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"ctd_engine.{_HOMES[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"ctd_engine.{name}")
    raise AttributeError(f"module 'ctd_engine' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
