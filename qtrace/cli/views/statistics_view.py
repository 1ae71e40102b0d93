"""The statistics of an --all recording, for people.

A bottom half has a line of figures, and below it who ran and who scheduled it. No name is cut or
folded: one that is too long for its column has a line of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from qtrace.cli.views.verdict_view import Report, inert
from qtrace.units import show

# As many bottom halves, and of these the longest runs, as fit on a page.
ROWS, LONGEST, FRAMES = 25, 3, 5
# Who schedules one: the JSON has more.
SCHEDULERS = 3
# "1.25 ms"; and a count, which may be longer.
TIME, COUNT = 7, 6
TIMES = ("p50_ns", "p99_ns", "max_ns")
FIGURES = 1 + COUNT + 2 * len(TIMES) * (1 + TIME)


def print_statistics(console: Console, report: Report) -> None:
    """Print the ``statistics`` of ``qtrace.analysis.judge``; nothing when there are none."""
    for rows in report["statistics"]:
        if rows:
            console.print()
            _print_table(console, rows[:ROWS])
            if len(rows) > ROWS:
                console.print(Text(f"... {len(rows) - ROWS} more with --format json"))
            console.print()
            _print_longest(console, rows)


def _print_table(console: Console, rows: list[dict[str, Any]]) -> None:
    names = [inert(row["name"]) or "?" for row in rows]
    title = "bottom half"
    fitting = [len(name) for name in names if len(name) <= console.width - FIGURES]
    width = max([len(title), *fitting])
    groups = "".join(f"{what:>{len(TIMES) * (1 + TIME)}}" for what in ("wait", "took"))
    console.print(Text(" " * (width + 1 + COUNT) + groups, style="bold"))
    titles = _figures("ran", ["p50", "p99", "max"] * 2)
    console.print(Text(f"{title:<{width}}{titles}", style="bold"))
    for name, row in zip(names, rows, strict=True):
        if len(name) > width:
            console.print(Text(name))
            name = ""
        times = [_time(row[what], key) for what in ("wait", "duration") for key in TIMES]
        console.print(Text(f"{name:<{width}}{_figures(str(row['ran']), times)}"))
        _print_indented(console, "; ".join(_facts(row)))
        if row["scheduled_by"]:
            _print_indented(console, f"scheduled {', '.join(_schedulers(row))}")


def _figures(count: str, times: list[str]) -> str:
    return f" {count:>{COUNT}}" + "".join(f" {text:>{TIME}}" for text in times)


def _time(times: dict[str, int] | None, key: str) -> str:
    return "" if times is None else show(times[key], "ns")


def _facts(row: dict[str, Any]) -> Iterator[str]:
    yield f"in {row['context'] or 'an unknown context'}"
    if row["roles"]:
        yield f"ran on {', '.join(_roles(row))}"
    for key in ("coalesced", "cancelled"):
        if row[key]:
            yield f"{row[key]} {key}"


def _roles(row: dict[str, Any]) -> Iterator[str]:
    for role, count in row["roles"].items():
        name = role or "an unknown thread"
        yield name if len(row["roles"]) == 1 else f"{name} {count}"


def _schedulers(row: dict[str, Any]) -> Iterator[str]:
    shown = row["scheduled_by"][:SCHEDULERS]
    for one in shown:
        by = f"by {one['caller']} " if one["caller"] else ""
        yield f"{one['count']} {by}on {_thread(one)}"
    others = row["scheduled"] - sum(one["count"] for one in shown)
    if others:
        yield f"{others} by others"


def _thread(one: dict[str, Any]) -> str:
    several = one.get("threads", 1)
    which = f"({several} threads)" if several > 1 else f"(tid {one['tid']})"
    return " ".join(part for part in (one.get("role"), one["thread"], which) if part)


def _print_longest(console: Console, rows: list[dict[str, Any]]) -> None:
    runs = [(run, row["name"]) for row in rows for run in row["longest"]]
    runs.sort(key=lambda pair: -pair[0]["duration_ns"])
    if runs:
        console.print(Text("the longest runs:"))
    for run, name in runs[:LONGEST]:
        when = f"{run['since_start_ns'] / 1e9:.6f} s"
        chain = " <- ".join(run["stack"][:FRAMES])
        _print_indented(
            console,
            f"{show(run['duration_ns'], 'ns')} at {when} (row {run['row']}): {name} on"
            f" {_thread(run)}: {chain}",
        )


def _print_indented(console: Console, text: str) -> None:
    """Below what it belongs to, also where it goes on in the next line."""
    if console.soft_wrap:
        console.print(Text(f"  {inert(text)}"))
    else:
        console.print(Padding(Text(inert(text)), (0, 0, 0, 2), expand=False))
