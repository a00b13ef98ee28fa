"""The table of a scheduler as its pipeline has set it."""

from __future__ import annotations

import inspect
from typing import Any

from ctd_engine._table import SolverTable
from ctd_engine.integrations.diffusers.tables import _family

__all__ = ["table_as_set"]


def table_as_set(scheduler: Any, **step_options: Any) -> SolverTable:
    """As `solver_table`, of the timesteps that the scheduler holds and the options of its step."""
    family = _family(scheduler)
    known = inspect.signature(family).parameters
    for name, value in step_options.items():
        if name not in known:
            raise ValueError(f"{type(scheduler).__name__} has no {name}, got {value!r}")
    return family(scheduler, **step_options)
