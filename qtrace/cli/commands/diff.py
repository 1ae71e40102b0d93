"""``qtrace diff``: what changed between two recordings, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtrace.cli.lint_options import threshold_option
from qtrace.cli.output import format_option, print_json, stderr, stdout

if TYPE_CHECKING:
    from rich.text import Text

EXAMPLES = """\b
Examples:
  qtrace diff stock.csv rerouted.csv
  qtrace diff monday/ tuesday/ --format json
  qtrace diff stock.csv rerouted.csv -o diff.html
  qtrace diff before.parquet after.parquet --lint all --threshold storm=100/s"""
# As many bottom halves' times as fit on a page; JSON has them all.
ROWS = 15
# What, how many, and two times: before and after of each.
LINE = "{:<14}{:>20}{:>22}{:>22}"
STYLES = {"new": "bold red", "inconclusive": "yellow", "none": "green"}


@click.command(epilog=EXAMPLES)
@click.argument("before", metavar="BEFORE")
@click.argument("after", metavar="AFTER")
@click.option(
    "-b", "--bh", "patterns", metavar="GLOB", multiple=True,
    help="Compare the bottom halves of these names, not those the recordings watched.",
)  # fmt: skip
@click.option(
    "--lint", "lints", metavar="NAME", multiple=True,
    help="Let new findings of this lint count (repeatable; all for each); without it those of"
    " level error do.",
)  # fmt: skip
@threshold_option
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
    help="Write it as one HTML file, too: NAME.html.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite the output file.")
@format_option
def command(
    before: str,
    after: str,
    patterns: tuple[str, ...],
    lints: tuple[str, ...],
    thresholds: dict[str, str],
    output: Path | None,
    force: bool,
    output_format: str,
) -> int:
    """What changed between recordings: verdicts, waits and durations, findings.

    BEFORE and AFTER are each a trace, a folder of them or a glob. For rare verdicts it says
    how likely chance alone makes such a difference. Exit status: 1 when a finding came that
    was not there before, 4 when that cannot be told, else 0.
    """
    from qtrace.analysis.comparison import compare, compare_status
    from qtrace.cli.views.verdict_view import inert

    if output is not None:
        from qtrace.export.diff_page import SUFFIXES
        from qtrace.export.output_file import check_suffix
        from qtrace.trace.writer import check_output

        check_suffix(output, SUFFIXES)
        check_output(output, force)
    comparison = compare(before, after, patterns, lints or None, thresholds)
    if output is not None:
        from qtrace.export.diff_page import write_diff

        write_diff(comparison, output, force)
    for text in comparison["warnings"]:
        stderr().print(inert(f"warning: {text}"))
    if output_format == "json":
        print_json(comparison)
    else:
        _print(comparison)
    return compare_status(comparison)


def _print(comparison: dict[str, Any]) -> None:
    from rich.text import Text

    from qtrace.cli.views.verdict_view import inert

    console = stdout()
    console.print(Text(inert(comparison["why"]), STYLES[comparison["answer"]]))
    for title in ("came", "gone"):
        if comparison[title]:
            console.print()
        for one in comparison[title]:
            rows = ", ".join(map(str, one["evidence"]["rows"][:6]))
            what = (
                one["sentence"] if one["kind"] == "verdict" else f"{one['lint']}: {one['sentence']}"
            )
            console.print(Text(inert(f"{title}: {what}")))
            console.print(Text(inert(f"  row {rows} of {one['evidence']['trace']}")))
    for half in comparison["bottom_halves"]:
        console.print()
        console.print(Text(inert(half["name"]), "bold"))
        for row in sorted(half["verdicts"], key=lambda row: row["chance"]):
            console.print(Text(inert(f"  {row['verdict']}: {row['sentence']}")))
        if not half["verdicts"]:
            console.print("  not seen on either side")
    if comparison["times"]:
        console.print()
        for line in _times(comparison["times"][:ROWS]):
            console.print(line)
        if len(comparison["times"]) > ROWS:
            console.print(f"... {len(comparison['times']) - ROWS} more with --format json")
    console.print()
    for side in ("before", "after"):
        traces = comparison[side]["traces"]
        names = ", ".join(trace["path"] for trace in traces[:3])
        more = f" and {len(traces) - 3} more" if len(traces) > 3 else ""
        versions = dict.fromkeys(
            f"{trace['target'].get('program', '?')} {trace['target'].get('version', '?')}"
            for trace in traces
        )
        console.print(Text(inert(f"{side}: {names}{more}: {', '.join(versions)}")))


def _times(rows: list[dict[str, Any]]) -> Iterator[Text]:
    """Lines of at most 80 columns but for the names: these stand on a line of their own."""
    from rich.text import Text

    from qtrace.cli.views.verdict_view import inert

    yield Text(LINE.format("before > after", "count", "p50", "p99"), "bold")
    for row in rows:
        yield Text(f"{inert(row['name']) or '?'} ({inert(row['context']) or '?'})")
        for title, what in (("wait", "wait"), ("took", "duration")):
            pair = row[what]
            sides = (pair["before"], pair["after"])
            if any(sides):
                counts = " > ".join("-" if side is None else f"{side['count']:,}" for side in sides)
                times = (_change(pair, key) for key in ("p50_ns", "p99_ns"))
                yield Text(LINE.format(f"  {title}", counts, *times))


def _change(pair: dict[str, Any], key: str) -> str:
    from qtrace.units import show

    return " > ".join(
        "-" if pair[s] is None else show(pair[s][key], "ns") for s in ("before", "after")
    )
