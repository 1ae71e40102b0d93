"""The table of docs/builds.md: what works on which build. What stands around it is a person's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

TABLE = Path(__file__).resolve().parents[1] / "docs/builds.md"
HEAD = re.compile(r"^\| command \| accelerator \|(.*)\|\n\|(?:-+\|)+\n", re.MULTILINE)

Cell = tuple[str, str, str]


def add_results(results: Mapping[Cell, str], table: Path = TABLE) -> None:
    """Write results into the table, whose columns are the builds; others stay.

    Args:
        results: by command, accelerator (empty where it is no matter) and build.

    Raises ValueError when the file has no such table, or no column of a build.
    """
    text = table.read_text()
    head = HEAD.search(text)
    if head is None:
        raise ValueError(f"{table} has no table of builds")
    builds = [name.strip() for name in head[1].split("|")]
    if unknown := {build for _command, _accelerator, build in results} - set(builds):
        raise ValueError(f"{table} has no column for {', '.join(sorted(unknown))}")
    lines = text[head.end() :].splitlines(keepends=True)
    size = next((n for n, line in enumerate(lines) if not line.startswith("|")), len(lines))
    kept: dict[tuple[str, str], dict[str, str]] = {}
    for line in lines[:size]:
        command, accelerator, *cells = (c.strip() for c in line.strip().strip("|").split("|"))
        kept[command, accelerator] = dict(zip(builds, cells, strict=True))
    for (command, accelerator, build), result in results.items():
        kept.setdefault((command, accelerator), dict.fromkeys(builds, ""))[build] = result
    rows = [
        f"| {' | '.join((*key, *(cells[build] for build in builds)))} |\n"
        for key, cells in sorted(kept.items())
    ]
    table.write_text(text[: head.end()] + "".join(rows) + "".join(lines[size:]))
