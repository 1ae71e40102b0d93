"""``qtrace explain``: what became of an instance of a recording, and why."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from qtrace.cli.output import format_option, print_json, stderr, stdout

if TYPE_CHECKING:
    from qtrace.analysis.frames import Frames
    from qtrace.analysis.overview import Overview

EXAMPLES = """\b
Examples:
  qtrace explain trace.csv                the worst of what was watched
  qtrace explain trace.csv 17
  qtrace explain trace.csv --row 213      as in the evidence of qtrace analyze
  qtrace explain trace.parquet -b job_exit
  qtrace explain trace.parquet -b 'snapshot_*' --list"""
# As many as fit on a few screens; JSON has them all.
LISTED = 100
# Of each instance in JSON.
FACTS = ("name", "context", "verdict", "reason", "scheduled_ns", "ended_ns", "wait_ns", "tid",
         "thread", "role", "scheduled_row", "ended_row")  # fmt: skip


@click.command(epilog=EXAMPLES)
@click.argument("trace", metavar="TRACE")
@click.argument("instances", metavar="[INSTANCE]...", nargs=-1, type=int)
@click.option(
    "-b", "--bh", "patterns", metavar="GLOB", multiple=True,
    help="Bottom halves of these names, not those the recording watched (repeatable).",
)  # fmt: skip
@click.option(
    "--row", "rows", metavar="ROW", multiple=True, type=int,
    help="The instance that this row of the file belongs to (repeatable).",
)  # fmt: skip
@click.option("--list", "listed", is_flag=True, help="List the instances with their numbers.")
@format_option
def command(
    trace: str,
    instances: tuple[int, ...],
    patterns: tuple[str, ...],
    rows: tuple[int, ...],
    listed: bool,
    output_format: str,
) -> int:
    """What became of a bottom half and why, in prose: who scheduled it, what it waited behind,
    which thread ran it inside whose poll, how long it ran, and what proves its verdict.

    TRACE is a CSV or Parquet file of `qtrace attach -o`. INSTANCE is the number of a schedule in
    it, as --list and the JSON of `qtrace analyze` give it; without one it is the worst of each
    bottom half. Exit status: 1 when an instance shown has a finding, else 4 when one is
    inconclusive, else 0.
    """
    from qtrace.analysis import FINDINGS, Trace
    from qtrace.analysis.explain import explain
    from qtrace.analysis.frames import fold_all
    from qtrace.analysis.overview import Overview
    from qtrace.analysis.selection import Listing, Selecting
    from qtrace.cli.progress import converting
    from qtrace.cli.views.verdict_view import inert
    from qtrace.errors import ExitStatus

    opened, overview = Trace(trace), Overview()
    with converting(trace) as progress:
        opened.progress = progress
        one = opened.view
        selecting = Selecting(one, instances, rows, patterns, every=listed)
        fold_all(one, [overview, selecting])
        chosen = selecting.end()
        as_json = output_format == "json"
        shown = chosen if as_json or not listed else chosen[:LISTED]
        listing = Listing(shown, FACTS)
        texts: list[str] = []
        if listed and shown:
            fold_all(one, [listing])
            found = listing.rows().to_dict("records")
        elif shown:
            found = selecting.rows_of(shown).to_dict("records")
            texts = explain(one, overview, dict(zip(shown, found, strict=True)))
        else:
            found = []
    for text in one.warnings:
        stderr().print(inert(f"warning: {trace}: {text}"))
    if as_json:
        facts = [
            {"instance": index, **_plain(row)} for index, row in zip(shown, found, strict=True)
        ]
        for fact, text in zip(facts, texts, strict=False):
            fact["text"] = text
        print_json({"trace": trace, "instances": facts})
    elif listed:
        _list(shown, found, len(chosen))
    else:
        told = [inert_lines(text) for text in texts]
        stdout().print("\n\n".join(told) or inert_lines(_nothing(one, overview, trace)))
    if selecting.verdicts & FINDINGS:
        return ExitStatus.FINDING
    return ExitStatus.INCONCLUSIVE if "inconclusive" in selecting.verdicts else ExitStatus.OK


def _nothing(one: Frames, overview: Overview, path: str) -> str:
    """Of a recording without what was asked for: what it has, and what to type next."""
    names = len(overview.names)
    if names:
        what = "1 other bottom half" if names == 1 else f"{names} other bottom halves"
        next_one = shlex.join(["qtrace", "explain", path, "-b", "*"])
        none = "none of those that are watched, or named, was scheduled in this recording"
        return f"{none}\nnext: {next_one}, of {what}"
    next_one = "qtrace attach --pid PID --all -o trace.parquet, which records every bottom half"
    if len(one.commands):
        next_one = f"{shlex.join(['qtrace', 'analyze', '--commands', path])}, of its QMP commands"
    return f"no bottom half was scheduled in this recording\nnext: {next_one}"


def inert_lines(text: str) -> str:
    """Nothing in it can steer a terminal; its own line ends stay."""
    from qtrace.cli.views.verdict_view import inert

    return "\n".join(inert(line) for line in text.split("\n"))


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    """An instance as JSON has it."""
    import pandas as pd

    facts: dict[str, Any] = {}
    for column in FACTS:
        value = row[column]
        facts[column] = None if pd.isna(value) else value if isinstance(value, str) else int(value)
    return facts


def _list(numbers: list[int], rows: list[dict[Any, Any]], count: int) -> None:
    import pandas as pd
    from rich.table import Table
    from rich.text import Text

    from qtrace.cli.views.verdict_view import inert
    from qtrace.units import show

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in (("instance", "right"), ("bottom half", "left"), ("wait", "right")):
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for title in ("on", "verdict"):
        table.add_column(title, overflow="fold")
    for index, row in zip(numbers, rows, strict=True):
        waited = "" if pd.isna(row["wait_ns"]) else show(row["wait_ns"], "ns")
        what = f"{row['name'] or '?'} ({row['context'] or '?'})"
        where = f"{row['role']} {row['thread']}".strip()
        cells = [str(index), what, waited, where, row["verdict"]]
        table.add_row(*(Text(inert(cell)) for cell in cells))
    console = stdout()
    console.print(table)
    if count > len(numbers):
        console.print(f"... {count - len(numbers):,} more with --format json")
