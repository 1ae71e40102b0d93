"""Many recordings as one HTML page: groups that differ, and the worst recordings.

Plain tables: the page may run nothing and load nothing (Content-Security-Policy). Names of targets
and files stand in it as escaped text.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from qtrace.analysis.fleet import Group, Row, command_for, main_finding
from qtrace.export.output_file import check_suffix, replacing
from qtrace.export.report_data import inert
from qtrace.units import show

SUFFIXES = (".html", ".htm")
# Of groups, of recordings and of what could not be read that are shown; the table has them all.
GROUPS, WORST, UNREAD, DIFFERENCES, TIMES = 100, 200, 100, 20, 10
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1200px; margin: 0 auto; padding: 16px; }
h1 { font-size: 20px; } h2 { font-size: 17px; margin: 26px 0 6px; }
table { border-collapse: collapse; width: 100%; margin: 6px 0; }
th, td { text-align: left; vertical-align: top; padding: 3px 10px 3px 0;
  border-bottom: 1px solid #8884; overflow-wrap: anywhere; }
code { font-size: 13px; } .differs { font-weight: 600; }
"""


def write_fleet_page(
    rows: Sequence[Row], groups: Sequence[Group], word: str, target: Path, force: bool = False
) -> int:
    """Write the page; how many bytes it has.

    Args:
        rows: of the table, the worst first, without copies.
        groups: of ``groups``; ``word`` is what makes them.

    Raises:
        OutputExists, OutputFailed
    """
    check_suffix(target, SUFFIXES)
    page = "\n".join(_page(rows, groups, word)).encode()
    with replacing(target, force) as file:
        file.write(page)
    return len(page)


def _page(rows: Sequence[Row], groups: Sequence[Group], word: str) -> Iterator[str]:
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>qtrace fleet</title>\n<style>{STYLE}</style>\n</head>\n<body>"
    read = [row for row in rows if row.summary is not None]
    counts = Counter(row.verdict for row in read)
    yield f"<h1>{len(rows):,} recordings</h1>"
    told = [f"{count:,} {verdict}" for verdict, count in counts.items()]
    if len(read) < len(rows):
        told.append(f"{len(rows) - len(read):,} could not be read")
    yield f"<p>{_text(', '.join(told))}</p>"
    for group in groups[:GROUPS]:
        yield f"<h2>{_text(word)} {_text(group.name)}</h2>"
        yield f"<p>{len(group.rows):,} recordings, the worst {_text(group.verdict)}</p>"
        yield from _table(
            ("what", "elsewhere and here"),
            (
                (
                    f"{one.what} of {one.name}" if one.name else f"recordings with {one.what}",
                    one.sentence,
                )
                for one in group.differences[:DIFFERENCES]
            ),
            [one.differs for one in group.differences[:DIFFERENCES]],
        )
        times = sorted(group.summary.times.items(), key=lambda one: -one[1].count)[:TIMES]
        yield from _table(
            ("times", "count", "p50", "p99", "max"),
            (
                (
                    f"{about.what} of {about.name} ({about.context or '?'})",
                    f"{one.count:,}",
                    *(show(one.percentile(share), "ns") for share in (0.5, 0.99)),
                    show(one.largest_ns, "ns"),
                )
                for about, one in times
            ),
        )
    yield from _left_out(len(groups), GROUPS, "groups")
    worst = [(row, found) for row in read if (found := main_finding(row)) is not None]
    yield "<h2>The worst first</h2>" if worst else "<h2>No findings</h2>"
    yield from _table(
        ("verdict", "recording", "what", "to see it"),
        (
            (row.verdict, row.url, f"{found.sentence} ({found.count:,})", command_for(row))
            for row, (_about, found) in worst[:WORST]
        ),
    )
    yield from _left_out(len(worst), WORST, "recordings with findings")
    unread = [row for row in rows if row.summary is None]
    if unread:
        yield "<h2>Not read</h2>"
        yield from _table(
            ("recording", "why", "remedy"),
            ((row.url, row.error, row.remedy) for row in unread[:UNREAD]),
        )
        yield from _left_out(len(unread), UNREAD, "that were not read")
    yield "</body>\n</html>"


def _table(
    heads: Sequence[str], lines: Iterator[Sequence[str]], loud: Sequence[bool] = ()
) -> Iterator[str]:
    made = ["".join(f"<td>{_text(cell)}</td>" for cell in line) for line in lines]
    if made:  # A table without lines is none.
        yield f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>"
        for number, line in enumerate(made):
            mark = ' class="differs"' if number < len(loud) and loud[number] else ""
            yield f"<tr{mark}>{line}</tr>"
        yield "</table>"


def _left_out(count: int, shown: int, what: str) -> Iterator[str]:
    if count > shown:
        yield f"<p>... {count - shown:,} more {what} in the table</p>"


def _text(text: str) -> str:
    return html.escape(inert(text, 1000))
