"""A screen of tables, as wide and as high as the terminal: names give way, figures do not."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells
from rich.text import Text

from qtrace.cli.views.verdict_view import inert

GAP = 2
# A column of names is not made narrower.
NARROWEST = 6
# Of the whole height findings take at most so much, and each of them so many lines.
FINDINGS_SHARE, FINDING_LINES = 3, 4
FINDING, TITLE, FAINT = "bold red", "bold", "dim"


@dataclass(frozen=True)
class Section:
    """A table.

    Attributes:
        titles: of its columns; the first one says what it is of.
        rows: the most important first; each has a cell for each title.
        figures: how many of the last columns are figures.
        loud: the numbers of rows that stand out.
    """

    titles: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    figures: int
    loud: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Screen:
    """What is shown at one moment; names in it come from the target.

    Attributes:
        head: lines that are never cut.
        findings: sentences that stand out.
        sections: those without rows are not shown.
        foot: one line at the bottom.
    """

    head: tuple[str, ...]
    sections: tuple[Section, ...]
    findings: tuple[str, ...] = ()
    foot: str = ""


def lines(screen: Screen, width: int, height: int) -> list[Text]:
    """All of it, in ``height`` lines at most, each ``width`` cells wide at most."""
    shown = [Text(part) for one in screen.head for part in _folded(one, width)]
    most = height // FINDINGS_SHARE
    for sentence in screen.findings:
        for part in _folded(sentence, width)[: min(FINDING_LINES, most)]:
            shown.append(Text(part, FINDING))
            most -= 1
    foot = [_cut(Text(inert(screen.foot), FAINT), width)] if screen.foot else []
    left = height - len(shown) - len(foot)
    sections = [section for section in screen.sections if section.rows]
    for section, count in zip(
        sections, shares([len(s.rows) for s in sections], left), strict=False
    ):
        shown += _table(section, count, width)
    shown = shown[: height - len(foot)]
    padding = [Text() for _ in range(height - len(shown) - len(foot))] if foot else []
    return [*shown, *padding, *foot]


def shares(wanted: Sequence[int], height: int) -> list[int]:
    """How many rows each table gets, one line more for its titles; the first ones first, and of the
    last ones those that no line is left for get none."""
    fitting = list(wanted[: max(height // 2, 0)])
    given = [1 for _ in fitting]
    left = height - 2 * len(fitting)
    while left > 0 and any(got < want for got, want in zip(given, fitting, strict=True)):
        for place, want in enumerate(fitting):
            if left > 0 and given[place] < want:
                given[place] += 1
                left -= 1
    return given


def _table(section: Section, count: int, width: int) -> Iterator[Text]:
    titles = tuple(section.titles)
    if count < len(section.rows):
        titles = (f"{titles[0]} ({count} of {len(section.rows)})", *titles[1:])
    rows = [tuple(map(inert, row)) for row in section.rows[:count]]
    widths = _widths([titles, *rows], section.figures, width)
    for number, row in enumerate([titles, *rows]):
        style = TITLE if not number or number - 1 in section.loud else ""
        line = Text(style=style)
        for place, (cell, room) in enumerate(zip(row, widths, strict=True)):
            if place:
                line.append(" " * GAP)
            if place >= len(row) - section.figures:
                line.append(f"{cell:>{room}}")
            else:
                text = Text(cell)
                text.truncate(room, overflow="ellipsis", pad=True)
                line.append_text(text)
        line.rstrip()
        yield _cut(line, width)


def _widths(rows: Sequence[tuple[str, ...]], figures: int, width: int) -> list[int]:
    """Figures get what they need, names share the rest."""
    needed = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    names = len(needed) - figures
    left = width - GAP * (len(needed) - 1) - sum(needed[names:])
    while names and sum(needed[:names]) > left and max(needed[:names]) > NARROWEST:
        needed[needed.index(max(needed[:names]))] -= 1
    if names and sum(needed[:names]) < left:
        # Figures stand at the right edge.
        needed[names - 1] += left - sum(needed[:names])
    return needed


def _folded(line: str, width: int) -> list[str]:
    parts = textwrap.wrap(inert(line), width, break_on_hyphens=False)
    # Some letters are two cells wide.
    return [piece for part in parts for piece in chop_cells(part, width)] or [""]


def _cut(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    return line
