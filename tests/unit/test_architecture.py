"""docs/architecture.md says what is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def test_every_room_is_told_in_the_order_of_the_layers() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    rooms = [set(re.findall(r"qtrace\.(\w+)", layer)) for layer in layers]
    table = TEXT.partition("| room |")[2].partition("\n\n")[0]
    told = [
        room for row in table.splitlines() for room in re.findall(r"`(\w+)`", row.split("|")[1])
    ]
    levels = [next(n for n, level in enumerate(rooms) if room in level) for room in told]
    assert set(told) == set().union(*rooms)
    assert levels == sorted(levels)


def test_the_way_of_a_process_through_arming_is_that_of_the_list() -> None:
    listed = re.findall(r"^\d+\. `([\w/.]+)`", TEXT, re.MULTILINE)
    assert len(listed) <= 10
    assert all((ROOT / path).is_file() for path in listed)
    takes = re.compile(r"\bprocess: Process\b|\bProcess\(pid\)")
    recorder = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "qtrace/record").rglob("*.py")
        if takes.search(path.read_text())
    }
    assert recorder <= set(listed)
