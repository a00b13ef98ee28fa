"""The command line: `ctd-engine train | sample | experiment | convert-edm | demo | info | bench`."""

from __future__ import annotations

from ctd_engine.cli.main import main

__all__ = ["main"]
