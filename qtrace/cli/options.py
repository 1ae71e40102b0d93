"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

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


def process_options(
    *, required: bool, text: str = "The QEMU process (qtrace ps lists them)."
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """``--pid PID`` and ``--name GUEST``: the function gets ``pid``, None where neither is given.

    Args:
        required: one of them must be given.
        text: what the process is for.
    """

    def decorate(function: Callable[..., int]) -> Callable[..., int]:
        @click.option("--pid", type=int, help=text)
        @click.option("--name", "guest", metavar="GUEST", help="The same by its guest (-name).")
        @wraps(function)
        def chosen(*arguments: Any, pid: int | None, guest: str | None, **others: Any) -> int:
            given = (pid is not None) + (guest is not None)
            if given > 1 or (required and not given):
                raise click.UsageError("name a process by --pid, or a guest by --name")
            if guest is not None:
                from qtrace.process.process_list import find_guest

                pid = find_guest(guest)
            return function(*arguments, pid=pid, **others)

        return chosen

    return decorate
