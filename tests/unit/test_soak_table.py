"""docs/soak.md: the runs write its table, and what a person wrote around it stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.soak_table import TABLE, TITLES, add_rows

ABOVE, BELOW = "# Counts\n\nOn this machine.\n\n", "\n## Beside load\n\nNot a row.\n"


def test_rows_are_added_replaced_and_sorted_and_the_text_around_stays(tmp_path: Path) -> None:
    table = tmp_path / "soak.md"
    table.write_text(f"{ABOVE}{TITLES}| b | 7.2 | old |\n| c |  | stays |\n{BELOW}")
    add_rows({("b", "7.2"): "new", ("a", ""): "first"}, table)
    rows = "| a |  | first |\n| b | 7.2 | new |\n| c |  | stays |\n"
    assert table.read_text() == f"{ABOVE}{TITLES}{rows}{BELOW}"


def test_the_table_of_the_project_is_as_it_would_be_written(tmp_path: Path) -> None:
    copy = tmp_path / "soak.md"
    copy.write_text(TABLE.read_text())
    add_rows({}, copy)
    assert copy.read_text() == TABLE.read_text()


def test_a_file_without_the_table_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.md"
    other.write_text("# Another\n")
    with pytest.raises(ValueError, match="has no table"):
        add_rows({("a", ""): "b"}, other)
    assert other.read_text() == "# Another\n"
