"""The statistics of an --all recording, for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qtrace.analysis.lint import show
from qtrace.cli.report import inert

# As many bottom halves, and of these the longest runs, as fit on a page.
ROWS, LONGEST, FRAMES = 25, 3, 5


def print_statistics(console: Console, report: dict[str, Any]) -> None:
    """Print the ``statistics`` of ``qtrace.analysis.judge``; nothing when there are none."""
    for rows in report["statistics"]:
        if rows:
            console.print()
            console.print(_table(rows[:ROWS]))
            if len(rows) > ROWS:
                console.print(Text(f"... {len(rows) - ROWS} more with --format json"))
            console.print()
            for line in _longest(rows):
                console.print(Text(line))


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("bottom half", overflow="fold")
    for title in ("ran", "wait p50", "p99", "took p50", "p99"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("on", overflow="fold")
    for row in rows:
        times = [*_times(row["wait"]), *_times(row["duration"])]
        roles = ", ".join(f"{count} {role or '?'}" for role, count in row["roles"].items())
        more = [f"{row[key]} {key}" for key in ("coalesced", "cancelled") if row[key]]
        cell = "; ".join(part for part in (roles, *more) if part)
        name = f"{inert(row['name']) or '?'} ({inert(row['context']) or '?'})"
        table.add_row(name, str(row["ran"]), *times, inert(cell))
    return table


def _times(spread: dict[str, int] | None) -> list[str]:
    if spread is None:
        return ["", ""]
    return [show(spread[key], "ns") for key in ("p50_ns", "p99_ns")]


def _longest(rows: list[dict[str, Any]]) -> list[str]:
    runs = [(run, row["name"]) for row in rows for run in row["longest"]]
    runs.sort(key=lambda pair: -pair[0]["duration_ns"])
    lines = ["the longest runs:"] if runs else []
    for run, name in runs[:LONGEST]:
        chain = " <- ".join(run["stack"][:FRAMES])
        where = f"{run['thread']} (tid {run['tid']})"
        lines.append(inert(f"  {name}: {show(run['duration_ns'], 'ns')} on {where}: {chain}"))
    return lines
