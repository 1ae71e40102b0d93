"""The table in docs/lints.md: what each lint says of itself.

From the top of the tree: ``.venv/bin/python -m scripts.lint_table`` writes it again.
"""

from __future__ import annotations

from pathlib import Path

from qtrace.analysis.lint import Lint
from qtrace.analysis.lints import choose

PAGE = Path(__file__).resolve().parents[1] / "docs" / "lints.md"
BEGIN = "<!-- made by `python -m scripts.lint_table` from the lints themselves -->\n"
END = "<!-- end of what is made -->\n"
COLUMNS = ("lint", "finds", "threshold", "needs", "evidence", "source")


def table() -> str:
    """It, between its marks."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(_cells(lint) for lint in choose(None))]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows]
    return BEGIN + "".join(lines) + END


def _cells(lint: Lint) -> tuple[str, ...]:
    limit = "none" if lint.threshold is None else f"{lint.threshold}: {lint.why}"
    needs = f"`{lint.needs}`" if lint.needs else "any recording"
    return (f"`{lint.name}`", lint.sentence, limit, needs, lint.evidence, lint.source)


def main() -> None:
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + table() + rest.split(END)[1])


if __name__ == "__main__":
    main()
