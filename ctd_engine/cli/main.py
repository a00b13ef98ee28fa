"""The group of commands; each is imported only when it is called."""

from __future__ import annotations

import importlib

import click

import ctd_engine

__all__ = ["main"]

COMMANDS = {
    "train": "Train a denoiser on digits, points or images.",
    "sample": "Sample a checkpoint, in parallel or sequentially.",
    "serve": "Serve a checkpoint over HTTP, many requests at once.",
    "demo": "Sample 64 digits both ways, compare them, draw the pictures.",
    "experiment": "Compare denoising with contrastive training in 1D, 2D and on digits.",
    "info": "Tell which back-ends are active, and why others are not.",
    "bench": "Run the benchmarks.",
    "convert-edm": "Turn a pickled network of EDM into safetensors.",
}


class _LazyGroup(click.Group):
    # so that `--help` does not wait for torch
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        module = importlib.import_module(f"ctd_engine.cli.{name}")
        command: click.Command = getattr(module, name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_LazyGroup)
@click.version_option(ctd_engine.__version__)
def main() -> None:
    """Train diffusion models contrastively and sample them parallel in time."""
