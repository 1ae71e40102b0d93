"""What the ``aio`` commands print: lines and tables that are as wide as gdb's screen at most."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

import gdb

GAP, INDENT = "  ", "    "
# A last column that is narrower is not wrapped, but put on a line of its own.
NARROW = 24


def say(text: str = "") -> None:
    """A line of output, as far as it is printable: names come from the target."""
    gdb.write("".join(c if c.isprintable() else "?" for c in text) + "\n")


def tell(text: str) -> None:
    """A line that goes on below, further in, where the screen is narrow."""
    margin = text[: len(text) - len(text.lstrip())]
    fits = len(text) <= _width()
    for line in [text] if fits else _wrapped(text, _width(), margin + GAP):
        say(line)


def table(
    titles: Sequence[str],
    rows: Iterable[Sequence[object]],
    nothing: str,
    unread: Iterable[str] = (),
) -> None:
    """Columns as wide as they need; the line ``nothing`` when there are no rows.

    On a narrow screen the last one is wrapped, or columns go on in a line below.

    Args:
        unread: where more may be that cannot be read.
    """
    lines = [[str(cell) for cell in row] for row in rows]
    where = ", ".join(unread)
    if lines:
        lines.insert(0, list(titles))
        _print(lines)
    elif not where:
        say(nothing)
    if where:
        tell(f"not readable, there may be more: {where}")


def _print(lines: list[list[str]]) -> None:
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    screen = _width()
    before = sum(width + len(GAP) for width in widths[:-1])
    rest = screen - before if screen else widths[-1]
    if min(widths[-1], NARROW) <= rest:
        for line in lines:
            first = GAP.join(cell.ljust(widths[n]) for n, cell in enumerate(line[:-1]))
            parts = _wrapped(line[-1], rest, "") or [""]
            say((first + GAP + parts[0]).rstrip() if first else parts[0])
            for part in parts[1:]:
                say(" " * before + part)
        return
    groups = _groups(widths, screen)
    for line in lines:
        for number, (start, end) in enumerate(groups):
            cells = [line[n].ljust(widths[n]) for n in range(start, end)]
            tell((INDENT if number else "") + GAP.join(cells).rstrip())


def _groups(widths: list[int], screen: int) -> list[tuple[int, int]]:
    """Which columns stand in one line, as (first, after the last)."""
    groups, start, used = [], 0, 0
    for n, width in enumerate(widths):
        if n > start and used + width > screen:
            groups.append((start, n))
            start, used = n, len(INDENT)
        used += width + len(GAP)
    return [*groups, (start, len(widths))]


def _width() -> int:
    """The screen's, 0 where lines may have any length (no terminal)."""
    return int(gdb.parameter("width") or 0)


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    if not width:
        return [text]
    return textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
