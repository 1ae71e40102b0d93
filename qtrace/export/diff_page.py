"""What `qtrace diff` tells as one HTML file: what differs first, then the numbers behind it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qtrace.analysis.rates import Count
from qtrace.analysis.verdicts import FINDINGS
from qtrace.export.output_file import replacing
from qtrace.export.page import Child, page, section, table, tag
from qtrace.units import show

SUFFIXES = (".html", ".htm")
TONES = {"new": "bad", "inconclusive": "warn", "none": "good"}
SIDES = ("before", "after")
# Rows of tables, and of evidence, that are shown.
SHOWN, ROWS = 300, 8
BAR = 1000


def write_diff(comparison: Mapping[str, Any], target: Path, force: bool = False) -> int:
    """Write the page of what ``analysis.comparison.compare`` returns; how many bytes it has.

    Raises:
        OutputExists, OutputFailed
    """
    written = diff_page(comparison)
    with replacing(target, force) as file:
        file.write(written)
    return len(written)


def diff_page(comparison: Mapping[str, Any]) -> bytes:
    """The page."""
    sides = [_files(comparison[side]) for side in SIDES]
    return page(
        "qtrace diff",
        f"before: {sides[0]}; after: {sides[1]}",
        tag("p", tag("b", f"{comparison['answer']}:"), comparison["why"],
            class_=f"verdict {TONES[comparison['answer']]}"),
        *_findings(comparison),
        *_verdicts(comparison),
        *_times(comparison),
        *_sides(comparison),
    )  # fmt: skip


def _files(side: Mapping[str, Any]) -> str:
    names = [str(trace["path"]) for trace in side["traces"]]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _findings(comparison: Mapping[str, Any]) -> Iterable[ET.Element]:
    for key, title, tone in (("came", "Came", "bad"), ("gone", "Gone", "good")):
        found = comparison[key]
        if not found:
            continue
        items = []
        for one in found[:SHOWN]:
            what = (
                one["sentence"] if one["kind"] == "verdict" else f"{one['lint']}: {one['sentence']}"
            )
            rows = one["evidence"]["rows"]
            numbers = ", ".join(map(str, rows[:ROWS])) + (", ..." if len(rows) > ROWS else "")
            evidence = tag("span", f"row {numbers} of {one['evidence']['trace']}", class_="hint")
            items.append(tag("p", what, tag("br"), evidence, class_=f"verdict {tone}"))
        yield section(title, *items)


def _verdicts(comparison: Mapping[str, Any]) -> Iterable[ET.Element]:
    for half in comparison["bottom_halves"]:
        parts: list[Child] = []
        for row in half["verdicts"]:
            parts.append(tag("p", tag("b", f"{row['verdict']}: "), row["sentence"]))
            bars = [bar for side in SIDES for bar in _bar(row, side)]
            parts.append(tag("div", *bars, class_="bars"))
        yield section(half["name"], *(parts or [tag("p", "not seen on either side")]))


def _bar(row: Mapping[str, Any], side: str) -> list[ET.Element]:
    """A share, with where the true one lies with 95 %."""
    count, of = row[side]
    counted = Count(count, of, row["bursts"])
    low, high = counted.interval()
    svg = tag(
        "svg",
        tag("rect", x=0, y=3, width=round(counted.share * BAR), height=8, class_="share"),
        tag("path", d=f"M{low * BAR:.0f},7 L{high * BAR:.0f},7", class_="likely") if of else None,
        viewBox=f"0 0 {BAR} 14", preserveAspectRatio="none", role="img",
        aria_label=f"{side} {100 * counted.share:.3g} %",
    )  # fmt: skip
    bad = row["verdict"] in FINDINGS
    return [
        tag("span", side),
        tag("span", f"{count:,} of {of:,}", class_="number"),
        tag("div", svg, class_="bar bad" if bad else "bar"),
    ]


def _times(comparison: Mapping[str, Any]) -> Iterable[ET.Element]:
    rows: list[list[Child]] = []
    for one in comparison["times"][:SHOWN]:
        for title, what in (("wait", "wait"), ("took", "duration")):
            pair = one[what]
            if not any(pair[side] for side in SIDES):
                continue
            counts = " > ".join("-" if pair[s] is None else f"{pair[s]['count']:,}" for s in SIDES)
            changes = (_change(pair, key) for key in ("p50_ns", "p99_ns", "max_ns"))
            rows.append([one["name"] or "?", one["context"] or "?", title, counts, *changes])
    if rows:
        titles = ["bottom half", "context", "", "count", "p50", "p99", "longest"]
        yield section("How long they waited and ran, before > after", table(titles, rows, 4))


def _change(pair: Mapping[str, Any], key: str) -> str:
    return " > ".join("-" if pair[s] is None else show(pair[s][key], "ns") for s in SIDES)


def _sides(comparison: Mapping[str, Any]) -> Iterable[ET.Element]:
    rows: list[list[Child]] = []
    for side in SIDES:
        for trace in comparison[side]["traces"][:SHOWN]:
            target = trace["target"]
            program = f"{target.get('program') or '?'} {target.get('version') or ''}"
            whole = "" if trace["complete"] else "cut off"
            rows.append([side, str(trace["path"]), program, str(trace["wall_clock"]), whole,
                         f"{trace['lost_events']:,}"])  # fmt: skip
    titles = ["", "recording", "program", "began", "", "lost"]
    yield section("What was compared", table(titles, rows, 1))
    warnings = comparison["warnings"]
    if warnings:
        yield section("Warnings", tag("ul", *(tag("li", text) for text in warnings)))
