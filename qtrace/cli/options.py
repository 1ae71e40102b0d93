"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Duration(click.ParamType[float]):
    """``30``, ``30s``, ``500ms``, ``10m``, ``2h``, as seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", str(value).strip())
        if match is None or not float(match[1]):
            self.fail(f"'{value}' is no time; write it as 30s, 500ms, 10m or 2h", param, ctx)
        return float(match[1]) * UNITS[match[2]]


DURATION = Duration()


class Size(click.ParamType[int]):
    """``500M``, ``2G``, ``100000``, as bytes (binary multiples)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+)([KMGT]?)", str(value).strip().upper())
        if match is None or not int(match[1]):
            self.fail(f"'{value}' is no size; write it as 500M or 2G", param, ctx)
        return int(match[1]) << (10 * " KMGT".index(match[2] or " "))


SIZE = Size()


def watch_options(function: F) -> F:
    """What to watch, and where the trace goes."""
    path = click.Path(path_type=Path, dir_okay=False)
    for option in (
        click.option(
            "--qmp", type=path,
            help="Ask QEMU itself which threads are its vCPUs and IOThreads, by a QMP socket that "
            "nobody else uses. QMP commands are in the trace without it.",
        ),
        click.option("--force", is_flag=True, help="Overwrite the output file."),
        click.option("-o", "--output", type=path, help="Keep the trace: NAME.csv or NAME.parquet."),
        click.option(
            "-b", "--bh", "patterns", multiple=True, metavar="GLOB",
            help="Watch these bottom halves (repeatable); qtrace scan lists them.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function
