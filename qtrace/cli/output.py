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


def _format_option(*formats: str, text: str) -> Callable[[F], F]:
    return click.option(
        "--format", "output_format", type=click.Choice(["table", "json", *formats]),
        default="table", show_default=True, help=text,
    )  # fmt: skip


format_option = _format_option(text="table for people, json (on stdout alone) for scripts.")
html_format_option = _format_option(
    "html", text="table for people, json (on stdout alone) for scripts, html for a browser."
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


def print_page(page: bytes) -> None:
    """An HTML page on stdout, which must lead to a file."""
    if sys.stdout.isatty():
        raise click.UsageError("a page is for a browser: write it to a file (... > page.html)")
    sys.stdout.buffer.write(page)
    sys.stdout.flush()


def print_json(payload: Mapping[str, Any]) -> None:
    """One JSON document on stdout, with its schema version first."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **payload}, indent=2))
