"""What every command shares: one-line errors, JSON output, safe writing."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["emit", "json_option", "one_line_errors", "write_whole"]

Function = TypeVar("Function", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")


def one_line_errors(function: Function) -> Function:
    """Bad input ends the command with one clear line and exit code 2, without a traceback."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            click.echo(f"Error: {error}", err=True)
            raise SystemExit(2) from error

    return wrapped  # type: ignore[return-value]


def emit(values: dict[str, Any], text: str, as_json: bool) -> None:
    """Print the text, or the values as JSON."""
    click.echo(json.dumps(values) if as_json else text)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, then move it there: whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix
    )
    os.close(handle)
    try:
        write(Path(temporary))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
