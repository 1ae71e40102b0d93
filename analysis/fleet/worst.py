"""The worst recordings first: what each is listed for, and the command that shows it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from qtrace.analysis.fleet.files import URL
from qtrace.analysis.fleet.rows import Row
from qtrace.analysis.summary import About, Found
from qtrace.analysis.verdicts import FINDINGS, SEVERITY


def worst_first(rows: Iterable[Row]) -> list[Row]:
    """By verdict, then by how many findings there are."""

    def rank(row: Row) -> tuple[int, int, str]:
        found = row.summary.findings.values() if row.summary is not None else ()
        return SEVERITY.index(row.verdict), -sum(one.count for one in found), row.url

    return sorted(rows, key=rank)


def main_finding(row: Row) -> tuple[About, Found] | None:
    """The worst of a recording; None when there is none."""

    def rank(item: tuple[About, Found]) -> tuple[int, bool, int, About]:
        about, found = item
        severity = SEVERITY.index(about.what) if about.what in SEVERITY else len(SEVERITY)
        return severity, found.level != "error", -found.count, about

    return min(row.summary.findings.items(), key=rank, default=None) if row.summary else None


def command_for(row: Row) -> str:
    """What to type to see it; empty when there is no finding. A recording elsewhere is fetched
    first."""
    worst = main_finding(row)
    if worst is None:
        return ""
    about, found = worst
    elsewhere = URL.match(row.url) is not None
    path = shlex.quote(row.url.rpartition("/")[2] if elsewhere else row.url)
    if about.what in FINDINGS and found.rows:
        command = f"qtrace explain {path} --row {found.rows[0]}"
    else:
        lint = "" if about.what == "stuck" else f" --lint {about.what}"
        command = f"qtrace analyze {path}{lint}"
    return f"(after fetching {row.url}) {command}" if elsewhere else command
