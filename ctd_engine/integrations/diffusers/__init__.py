"""diffusers' schedulers as solver tables.

diffusers is an optional extra, `pip install 'ctd_engine[diffusers]'`. Nothing here imports it: a
scheduler is known by the name of its class.
"""

from __future__ import annotations

from ctd_engine.integrations.diffusers._sampler import DiffusersSampler, sampler
from ctd_engine.integrations.diffusers.pipelines import parallelize, restore
from ctd_engine.integrations.diffusers.tables import solver_table

__all__ = ["DiffusersSampler", "parallelize", "restore", "sampler", "solver_table"]
