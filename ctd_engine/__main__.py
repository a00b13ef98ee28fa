"""`python -m ctd_engine`, the command line; `torchrun -m ctd_engine` starts it on many ranks."""

from __future__ import annotations

from ctd_engine.cli import main

if __name__ == "__main__":
    main(prog_name="ctd-engine")
