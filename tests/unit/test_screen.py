"""The screen of tables: it is never larger than the terminal, and no figure of it is cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from qtrace.cli.views.screen import Screen, Section, lines, shares

FIGURES = ("12,345,678", "99.9 %", "9.99 us")
LONG = "a_very_long_name_of_a_bottom_half_" * 4


def shown(screen: Screen, width: int = 80, height: int = 24) -> list[str]:
    found = lines(screen, width, height)
    assert len(found) <= height
    assert all(cell_len(line.plain) <= width for line in found)
    return [line.plain for line in found]


def table(rows: int, name: str = LONG) -> Section:
    titles = ("bottom half", "context", "runs", "part", "p99")
    return Section(titles, [(name, "main", *FIGURES) for _ in range(rows)], len(FIGURES))


@pytest.mark.parametrize("width", [60, 80, 200])
def test_names_give_way_and_figures_do_not(width: int) -> None:
    title, *rows = shown(Screen((), (table(3),)), width)
    assert title.split()[-3:] == ["runs", "part", "p99"]
    for row in rows:
        assert re.split(r"\s{2,}", row)[-3:] == list(FIGURES)
        assert row.rstrip() == row
        assert ("…" in row) == (width < 180)


def test_rows_that_find_no_room_are_counted() -> None:
    found = shown(Screen(("head",), (table(30), table(2)), foot="foot"))
    assert len(found) == 24
    assert (found[0], found[-1]) == ("head", "foot")
    assert found[1].startswith("bottom half (18 of 30)")
    assert sum("bottom half" in line and "runs" in line for line in found) == 2


def test_findings_stand_above_the_tables_and_leave_them_room() -> None:
    found = shown(Screen(("head",), (table(9),), ("stuck: " + "it waits " * 300,)))
    assert found[1].startswith("stuck: it waits")
    assert [line.startswith("bottom half") for line in found].index(True) == 5


def test_names_of_the_target_can_steer_no_terminal() -> None:
    hostile = "\x1b[31m\u202e\nx" + "全" * 40
    for line in shown(Screen((hostile,), (table(2, hostile),), (hostile,), hostile), 70):
        assert line.isprintable()
        assert "\\x1b[31m" in line or hostile not in line


@given(st.lists(st.integers(1, 60), max_size=8), st.integers(-3, 60))
def test_every_line_is_given_away_and_none_twice(wanted: list[int], height: int) -> None:
    given_rows = shares(wanted, height)
    assert all(1 <= got <= want for got, want in zip(given_rows, wanted, strict=False))
    used = sum(given_rows) + len(given_rows)
    assert used <= max(height, 0)
    if len(given_rows) == len(wanted):
        assert used == min(max(height, 0), sum(wanted) + len(wanted)) or not wanted
