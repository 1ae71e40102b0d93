"""``qtrace fleet``: thousands of recordings, what was found in them, and where it differs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtrace.cli.output import format_option, print_json, stderr, stdout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qtrace.analysis.fleet import Fleet, Group, Row, Workers

EXAMPLES = """\b
Examples:
  qtrace fleet recordings/ -o summary.parquet
  qtrace fleet recordings/ -o summary.parquet --workers 8 --by build
  qtrace fleet s3://bucket/traces -o summary.parquet --workers 8
  qtrace fleet recordings/ -o summary.parquet --scheduler tcp://10.0.0.1:8786
  qtrace fleet summary.parquet --by rack='/(r[0-9]+)/'   as read before"""
# As many as fit on a page; JSON has them all.
WORST, GROUPS, DIFFERENCES, BROKEN = 10, 20, 5, 5
STYLES = {"error": "bold red", "differs": "yellow"}


@click.command(epilog=EXAMPLES)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="The table, a row for each recording: NAME.parquet. One that is there is brought up to"
    " date: only what is new is read.",
)  # fmt: skip
@click.option(
    "--by", "by", metavar="WORD",
    help="Compare groups: build, host, machine, program, version, recorder, or WORD=REGEX over the"
    " recording's URL.",
)  # fmt: skip
@click.option(
    "--processes", type=click.IntRange(1), metavar="N", help="Read with so many processes."
)
@click.option(
    "--workers", type=click.IntRange(1), metavar="N",
    help="Read with so many workers of a Dask cluster on this machine.",
)  # fmt: skip
@click.option(
    "--scheduler", metavar="ADDRESS", help="Read with the workers of this Dask scheduler."
)
@click.option(
    "--html", "page", type=click.Path(path_type=Path, dir_okay=False),
    help="Write it as a page, too: NAME.html.",
)  # fmt: skip
@click.option("--recheck", is_flag=True, help="Read every file, also those that look unchanged.")
@click.option(
    "--force", is_flag=True, help="Overwrite an output that is no such table, and a page."
)
@format_option
def command(
    sources: tuple[str, ...],
    output: Path | None,
    by: str | None,
    processes: int | None,
    workers: int | None,
    scheduler: str | None,
    page: Path | None,
    recheck: bool,
    force: bool,
    output_format: str,
) -> int:
    """Verdicts and findings of many recordings, the worst first; which group differs, how sure.

    SOURCE is a recording, a folder of them (with those below it), a glob, or a URL of these
    (s3://...); or, without -o, the table that an earlier run wrote. A recording that cannot be read
    is a row that says why. Interrupted, the same command goes on from there. Exit status: 1 when a
    recording has a finding, else 4 when one is inconclusive or unreadable, else 0.
    """
    from qtrace.analysis.fleet import By, groups, worst_first

    if sum(one is not None for one in (processes, workers, scheduler)) > 1:
        raise click.UsageError("one of --processes, --workers, --scheduler")
    try:
        wanted = None if by is None else By.parse(by)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--by") from error
    if page is not None:
        from qtrace.export.fleet_page import SUFFIXES, write_fleet_page
        from qtrace.export.output_file import check_suffix
        from qtrace.trace.writer import check_output

        check_suffix(page, SUFFIXES)
        check_output(page, force)
    if output is None:
        fleet = _told(sources)
    else:
        fleet = _survey(sources, output, _readers(processes, workers, scheduler), force, recheck)
    own = [row for row in fleet.rows if not row.duplicate_of]
    worst = worst_first(own)
    parts = groups(own, wanted) if wanted is not None else []
    if page is not None:
        write_fleet_page(worst, parts, wanted.word if wanted is not None else "", page, force)
    if output_format == "json":
        print_json(_plain(fleet, worst, parts))
    else:
        _print(fleet, worst, parts, wanted.word if wanted is not None else "")
    return _status(own)


def _readers(processes: int | None, workers: int | None, scheduler: str | None) -> Workers:
    from qtrace.analysis.fleet import Processes, Serial

    if processes is not None:
        return Processes(processes)
    if workers is None and scheduler is None:
        return Serial()
    from qtrace.analysis.fleet.cluster import Dask

    return Dask(scheduler or "", workers or 1)


def _told(sources: Sequence[str]) -> Fleet:
    """What an earlier run told."""
    from qtrace.analysis.fleet import Fleet, read_table

    if len(sources) != 1 or not sources[0].endswith(".parquet") or not Path(sources[0]).is_file():
        raise click.UsageError("name the table to write by -o, or, without -o, one that is there")
    return Fleet(read_table(sources[0]), 0)


def _survey(
    sources: Sequence[str], output: Path, readers: Workers, force: bool, recheck: bool
) -> Fleet:
    from qtrace.analysis.fleet import survey
    from qtrace.cli.progress import converting

    if output.suffix != ".parquet":
        raise click.BadParameter(f"{output} does not end in .parquet", param_hint="-o")
    try:
        with converting("recordings") as progress:
            fleet = survey(sources, output, readers, force, recheck, progress)
    except KeyboardInterrupt:
        stderr().print(f"what was read is kept in {output}.part: the same command goes on from it")
        raise
    if fleet.outdated:
        stderr().print(
            f"{output} was made by another analysis ({fleet.outdated}): all was read anew"
        )
    return fleet


def _status(rows: Sequence[Row]) -> int:
    from qtrace.analysis import FINDINGS
    from qtrace.errors import ExitStatus

    verdicts = {row.verdict for row in rows}
    if verdicts & {*FINDINGS, "stuck"}:
        return ExitStatus.FINDING
    return ExitStatus.INCONCLUSIVE if "inconclusive" in verdicts else ExitStatus.OK


def _print(fleet: Fleet, worst: Sequence[Row], parts: Sequence[Group], word: str) -> None:
    from rich.text import Text

    from qtrace.analysis.fleet import command_for, main_finding
    from qtrace.cli.views.verdict_view import inert

    console = stdout()

    def line(text: str, style: str = "") -> None:
        console.print(Text(inert(text), style))

    unread = [row for row in worst if row.summary is None]
    counts: dict[str, int] = {}
    for row in worst:
        if row.summary is not None:
            counts[row.verdict] = counts.get(row.verdict, 0) + 1
    parted = [f"{count:,} {verdict}" for verdict, count in counts.items()]
    if parted and unread:
        parted.append(f"{len(unread):,} not read")
    verdicts = ", ".join(parted)
    line(f"{_many(len(worst))}: {verdicts or 'none could be read'}", "bold")
    if copies := len(fleet.rows) - len(worst):
        line(f"{_many(copies)} more with the content of one of these")
    for row in unread[:BROKEN]:
        line(f"not read: {row.error if row.url in row.error else f'{row.url}: {row.error}'}")
        line(f"  {row.remedy}")
    if len(unread) > BROKEN:
        line(f"... {len(unread) - BROKEN:,} more were not read")
    for group in parts[:GROUPS]:
        line("")
        line(f"{word} {group.name}: {_size(group)}", "bold")
        shown = [one for one in group.differences if one.differs] or group.differences
        for one in list(shown)[:DIFFERENCES]:
            what = f"{one.what} of {one.name}" if one.name else f"recordings with {one.what}"
            line(f"  {what}: {one.sentence}", STYLES["differs"] if one.differs else "")
    if len(parts) > GROUPS:
        line(f"... {len(parts) - GROUPS:,} more groups with --format json")
    told = [row for row in worst if row.summary is not None and row.summary.findings][:WORST]
    if told:
        line("")
        line("the worst first:", "bold")
    for row in told:
        line(f"{row.verdict}: {row.url}")
        if (worst_of_it := main_finding(row)) is not None:
            found = worst_of_it[1]
            line(f"  {found.sentence}{f' ({found.count:,} times)' if found.count > 1 else ''}")
            line(f"  {command_for(row)}")


def _size(group: Group) -> str:
    unread = f", {group.unread:,} of them not read" if group.unread else ""
    return f"{_many(len(group.rows))}{unread}, the worst {group.verdict}"


def _many(count: int) -> str:
    return "1 recording" if count == 1 else f"{count:,} recordings"


def _plain(fleet: Fleet, worst: Sequence[Row], parts: Sequence[Group]) -> dict[str, Any]:
    import dataclasses

    from qtrace.analysis.fleet import command_for

    def recording(row: Row) -> dict[str, Any]:
        facts = {key: getattr(row, key) for key in ("url", "sha256", "verdict", "error", "remedy")}
        return {
            **facts,
            "duplicate_of": row.duplicate_of or None,
            **row.environment._asdict(),
            "findings": [
                {**about._asdict(), **dataclasses.asdict(found)}
                for about, found in (row.summary.findings.items() if row.summary else ())
            ],
            "explain": command_for(row) or None,
        }

    def times(group: Group) -> list[dict[str, Any]]:
        return [
            {
                **about._asdict(),
                "count": one.count,
                "p50_ns": one.percentile(0.5),
                "p99_ns": one.percentile(0.99),
                "max_ns": one.largest_ns,
            }
            for about, one in sorted(group.summary.times.items())
        ]

    copies = [row for row in fleet.rows if row.duplicate_of]
    return {
        "read": fleet.read,
        "recordings": [recording(row) for row in [*worst, *copies]],
        "groups": [
            {
                "name": group.name,
                "recordings": len(group.rows),
                "unread": group.unread,
                "verdict": group.verdict,
                "verdicts": dict(group.summary.verdicts),
                "differences": [
                    {**dataclasses.asdict(one), "differs": one.differs} for one in group.differences
                ],
                "times": times(group),
            }
            for group in parts
        ],
    }
