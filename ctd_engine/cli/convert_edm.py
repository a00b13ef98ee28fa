"""ctd-engine convert-edm"""

from __future__ import annotations

from pathlib import Path

import click

from ctd_engine.cli._common import emit, json_option, one_line_errors
from ctd_engine.integrations.edm import convert_pickle

__all__ = ["convert_edm"]


@click.command("convert-edm")
@click.argument("pickle_file", metavar="PICKLE", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT.safetensors", type=click.Path(path_type=Path))
@click.option(
    "--i-trust-this-file",
    is_flag=True,
    help="Run the code that the pickle contains; without it nothing is loaded.",
)
@click.option("--key", default="ema", show_default=True, help="Which network of the pickle.")
@json_option
@one_line_errors
def convert_edm(
    pickle_file: Path, out: Path, i_trust_this_file: bool, key: str, as_json: bool
) -> None:
    """Turn a pickled network of EDM into safetensors.

    Loading a pickle runs code, once and here; loading the result runs none.
    """
    config = convert_pickle(pickle_file, out, i_trust_this_file=i_trust_this_file, key=key)
    emit(config, f"{out}: {config['class']}, made of {config['init_kwargs']}", as_json)
