"""What the lints said, for people: a sentence each, and where its proof stands."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from qtrace.cli.views.verdict_view import Report, inert
from qtrace.units import show

STYLES = {"error": "bold red", "warning": "yellow", "none": "green", "inconclusive": "yellow"}
# More findings than that are counted; the JSON has them all.
SHOWN = 20
ROWS = 6
# What the verdict above has told already, when nobody asked for the lint.
TOLD = ("wrong-thread", "stranded")
LONG = "long-callback"


def print_lints(console: Console, report: Report) -> None:
    """Print the ``lints`` of ``qtrace.analysis.judge``: findings, and the answer of each that was
    asked for."""
    judged = {half["name"] for half in report["bottom_halves"] if half["findings"]}
    lines: list[Text] = []
    hidden = 0
    for lint in report["lints"]:
        findings = [
            finding
            for finding in lint["findings"]
            if lint["asked"] or lint["lint"] not in TOLD or finding["name"] not in judged
        ]
        for finding in findings:
            if len(lines) < 2 * SHOWN:
                lines += _finding(lint["lint"], finding)
            else:
                hidden += 1
        if lint["asked"] and lint["result"] != "finding":
            lines.append(_answer(lint, several=len(report["traces"]) > 1))
    if not lines and (bill := _clean_bill(report)):
        lines = [Text(bill)]
    if lines:
        console.print()
    for line in lines:
        console.print(line)
    if hidden:
        console.print(Text(f"... {hidden} more findings of lints with --format json"))


def _finding(name: str, finding: dict[str, Any]) -> list[Text]:
    rows, trace = finding["evidence"]["rows"], finding["evidence"]["trace"]
    line = Text().append(f"{name}: ", STYLES[finding["level"]]).append(inert(finding["sentence"]))
    numbers = ", ".join(map(str, rows[:ROWS])) + (", ..." if len(rows) > ROWS else "")
    where = f"row {numbers} of {trace}" if trace else "keep the trace with -o"
    return [line, Text(inert(f"  {where}"))]


def _clean_bill(report: Report) -> str:
    """How many lints looked and found nothing, how many cannot tell; empty where something was
    found, by a verdict too, or where only the one looked that always does."""
    halves = report["bottom_halves"]
    found = report["stuck"] or any(one["findings"] for one in (*halves, *report["lints"]))
    if found or len({lint["lint"] for lint in report["lints"]}) < 2:
        return ""
    open_ones = {lint["lint"] for lint in report["lints"] if lint["result"] != "none"}
    clean = {lint["lint"] for lint in report["lints"]} - open_ones
    if not clean:
        return ""
    text = f"nothing found by {len(clean)} lints"
    if open_ones:
        text += f"; {len(open_ones)} cannot tell from this recording"
    took = [row["duration"]["max_ns"] for rows in report["statistics"] for row in rows
            if row["duration"]]  # fmt: skip
    allowed = {lint["threshold"] for lint in report["lints"] if lint["lint"] == LONG}
    if LONG in clean and took and len(allowed) == 1:
        text += f"; the longest callback took {show(max(took), 'ns')} of {allowed.pop()} allowed"
    return text


def _answer(lint: dict[str, Any], several: bool) -> Text:
    where = f" ({lint['trace']})" if several else ""
    reason = f": {lint['reason']}" if lint["reason"] else ""
    line = Text().append(f"{lint['lint']}: ", STYLES[lint["result"]])
    return line.append(inert(f"{lint['result']}{reason}{where}"))
