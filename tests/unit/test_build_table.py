"""docs/builds.md: the runs write its table, and what a person wrote around it stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.build_table import TABLE, add_results
from tests.builds import BUILDS

HEAD = "# Builds\n\n| command | accelerator | one | two |\n|---|---|---|---|\n"
BELOW = "\nNot a row.\n"


def test_a_result_goes_into_its_cell_and_the_others_stay(tmp_path: Path) -> None:
    table = tmp_path / "builds.md"
    table.write_text(f"{HEAD}| run |  | old | stays |\n{BELOW}")
    add_results({("run", "", "one"): "new", ("attach", "kvm", "two"): "5"}, table)
    rows = "| attach | kvm |  | 5 |\n| run |  | new | stays |\n"
    assert table.read_text() == f"{HEAD}{rows}{BELOW}"


def test_the_table_of_the_project_has_every_build_and_is_as_it_would_be_written(
    tmp_path: Path,
) -> None:
    copy = tmp_path / "builds.md"
    copy.write_text(TABLE.read_text())
    add_results({}, copy)
    assert copy.read_text() == TABLE.read_text()
    others = ("installed", "backports")  # docs/soak.md has theirs
    add_results({("a", "", name): "" for name in BUILDS if name not in others}, copy)


@pytest.mark.parametrize("text", ["# Another\n", HEAD])
def test_a_file_without_the_table_or_the_build_is_left_alone(tmp_path: Path, text: str) -> None:
    other = tmp_path / "other.md"
    other.write_text(text)
    with pytest.raises(ValueError, match="has no"):
        add_results({("a", "", "three"): "b"}, other)
    assert other.read_text() == text
