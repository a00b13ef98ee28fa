"""The command line, `ctd-engine`: one file for every command."""

from __future__ import annotations

from ctd_engine.cli.main import main

__all__ = ["main"]
