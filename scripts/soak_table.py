"""The table of docs/soak.md. What stands above and below it is a person's, and stays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

TABLE = Path(__file__).resolve().parents[1] / "docs/soak.md"
TITLES = "| what | case | result |\n|---|---|---|\n"


def add_rows(rows: Mapping[tuple[str, str], str], table: Path = TABLE) -> None:
    """Write rows into the table; others stay, rows of the same count and case are replaced.

    Args:
        rows: the result of each count (``what``) and case.

    Raises ValueError when the file has no such table.
    """
    above, titles, rest = table.read_text().partition(TITLES)
    if not titles:
        raise ValueError(f"{table} has no table: {TITLES!r}")
    lines = rest.splitlines(keepends=True)
    size = next((n for n, line in enumerate(lines) if not line.startswith("|")), len(lines))
    kept = {}
    for line in lines[:size]:
        what, case, result = (cell.strip() for cell in line.strip().strip("|").split("|"))
        kept[what, case] = result
    written = sorted((kept | dict(rows)).items())
    body = "".join(f"| {what} | {case} | {result} |\n" for (what, case), result in written)
    table.write_text(above + titles + body + "".join(lines[size:]))
