"""``qtrace explain``: what became of an instance of a recording, and why."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from qtrace.cli.output import format_option, print_json, stderr, stdout

if TYPE_CHECKING:
    from qtrace.analysis import Trace

EXAMPLES = """\b
Examples:
  qtrace explain trace.csv                the worst of what was watched
  qtrace explain trace.csv 17
  qtrace explain trace.csv --row 213      as in the evidence of qtrace analyze
  qtrace explain trace.parquet -b job_exit
  qtrace explain trace.parquet -b 'snapshot_*' --list"""
# As many as fit on a few screens; JSON has them all.
LISTED = 100


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
    from qtrace.analysis.selection import select_instances
    from qtrace.cli.views.verdict_view import inert
    from qtrace.errors import ExitStatus

    one = Trace(trace)
    chosen = select_instances(one, instances, rows, patterns, every=listed)
    for text in one.warnings:
        stderr().print(inert(f"warning: {trace}: {text}"))
    found = one.instances.take(chosen)
    if output_format == "json":
        print_json({"trace": trace, "instances": [_plain(one, index, listed) for index in chosen]})
    elif listed:
        _list(one, chosen)
    else:
        texts = [inert_lines(one.explain(index)) for index in chosen]
        stdout().print("\n\n".join(texts) or inert_lines(_nothing(one, trace)))
    verdicts = set(found["verdict"].astype(object))
    if verdicts & FINDINGS:
        return ExitStatus.FINDING
    return ExitStatus.INCONCLUSIVE if "inconclusive" in verdicts else ExitStatus.OK


def _nothing(one: Trace, path: str) -> str:
    """Of a recording without what was asked for: what it has, and what to type next."""
    names = one.instances["name"].nunique()
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


def _plain(trace: Trace, index: int, listed: bool) -> dict[str, Any]:
    """An instance as JSON has it."""
    import pandas as pd

    one = trace.instances.iloc[index]
    columns = ("name", "context", "verdict", "reason", "scheduled_ns", "ended_ns", "wait_ns", "tid",
               "thread", "role", "scheduled_row", "ended_row")  # fmt: skip
    facts: dict[str, Any] = {"instance": index}
    for column in columns:
        value = one[column]
        facts[column] = None if pd.isna(value) else value if isinstance(value, str) else int(value)
    return facts if listed else {**facts, "text": trace.explain(index)}


def _list(trace: Trace, chosen: list[int]) -> None:
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
    shown = trace.instances.take(chosen[:LISTED])
    columns = ["name", "context", "wait_ns", "role", "thread", "verdict"]
    for index, row in zip(chosen, shown[columns].astype(object).to_numpy(), strict=False):
        name, context, wait, role, thread, verdict = row
        waited = "" if pd.isna(wait) else show(wait, "ns")
        where = f"{role} {thread}".strip()
        cells = [str(index), f"{name or '?'} ({context or '?'})", waited, where, verdict]
        table.add_row(*(Text(inert(cell)) for cell in cells))
    console = stdout()
    console.print(table)
    if len(chosen) > LISTED:
        console.print(f"... {len(chosen) - LISTED:,} more with --format json")
