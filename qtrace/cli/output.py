"""What every command's output shares: the consoles, the JSON envelope, the --format option."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])

# 2: with threads that are stuck.
SCHEMA_VERSION = 2

format_option: Callable[[F], F] = click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="table for people, json (on stdout alone) for scripts.",
)


def stdout() -> Console:
    """Results go here. Names from the target are untrusted: no markup, no highlighting."""
    from rich.console import Console

    class Stdout(Console):
        def on_broken_pipe(self) -> None:
            # rich would end with status 1, which means a finding here.
            raise BrokenPipeError

    return Stdout(markup=False, highlight=False, soft_wrap=not sys.stdout.isatty())


def stderr() -> Console:
    """Progress, hints and warnings go here."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, soft_wrap=not sys.stderr.isatty())


def print_json(payload: Mapping[str, Any]) -> None:
    """One JSON document on stdout, with its schema version first."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **payload}, indent=2))
