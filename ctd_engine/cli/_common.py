"""What every command shares: one-line errors, JSON output."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["emit", "json_option", "one_line_errors"]

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
