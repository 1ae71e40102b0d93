"""The made part of docs/hunt.md: what the rows of a hunt say.

From the top of the tree: ``.venv/bin/python -m scripts.hunt_page ROWS.csv...`` writes it again.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

from qtrace.lab.hunt.cell import FINDINGS, OUTCOMES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "hunt.md"
BEGIN = "<!-- made by `python -m scripts.hunt_page` from the rows of the run -->\n"
END = "<!-- end of what is made -->\n"
# What tells one thing that was found from another.
ASSERTION = re.compile(r"\w+: Assertion `[^']*' failed")
WAITS = re.compile(r"inspect: .*? waits in (\w+)")
OTHERS = {
    "Unknown ending state": "after `migration_iteration_finish: Unknown ending state`",
    "error adding ioeventfd": "`kvm_mem_ioeventfd_add: error adding ioeventfd`",
    "reads of a register": "reads of a register gave another value",
    "blocks were not the disk's": "blocks were not the disk's",
}


def kind(what: str) -> str:
    """What was found, without what differs from cell to cell."""
    if found := ASSERTION.search(what):
        return f"`` {found[0]} ``"
    if found := WAITS.search(what):
        return f"the main loop waits in `{found[1]}`"
    told = what.partition("; ")[0]
    for text, name in OTHERS.items():
        if text in told:
            return name
    return re.sub(r"\d[\d,]*", "N", what.partition(":")[0])


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in cells)


def outcomes(rows: pd.DataFrame, by: str) -> str:
    seen = [one for one in OUTCOMES if (rows["outcome"] == one).any()]
    counts = pd.crosstab(rows[by], rows["outcome"])
    lines = [
        [str(name), *(str(counts.loc[name, one] or "") for one in seen)] for name in counts.index
    ]
    return markdown([by, *seen], lines)


def findings(rows: pd.DataFrame) -> str:
    found = rows[rows["outcome"].isin(FINDINGS)].assign(kind=rows["what"].map(kind))
    lines = []
    for (outcome, name), part in found.groupby(["outcome", "kind"]):
        builds = ", ".join(
            f"{v} ({n})" for v, n in part["version"].value_counts().sort_index().items()
        )
        lines.append(
            [
                str(outcome), str(name), builds, ", ".join(sorted(part["command"].unique())),
                ", ".join(sorted(part["device"].unique())), f"`{part['cell'].iloc[0]}`",
            ]
        )  # fmt: skip
    lines.sort(key=lambda line: (OUTCOMES.index(line[0]), line[1]))
    return markdown(["outcome", "what", "builds (cells)", "commands", "devices", "one cell"], lines)


def made(paths: list[Path]) -> str:
    rows = pd.concat([pd.read_csv(path) for path in paths], ignore_index=True).fillna({"what": ""})
    total, ran = len(rows), rows[~rows["outcome"].isin(["skipped", "did-not-start"])]
    bad = int(rows["outcome"].isin(FINDINGS).sum())
    head = (
        f"{total:,} cells, {len(ran):,} of which ran: {int(ran['asked'].sum()):,} commands,"
        f" {int(ran['checked'].sum()):,} reads and {int(ran['verified'].sum()):,} blocks checked by"
        f" the guests. {bad} cells found something.\n\n"
    )
    parts = [outcomes(rows, by) for by in ("version", "device", "command")]
    return BEGIN + head + findings(rows) + "\n" + "\n".join(parts) + END


def main() -> None:
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + made([Path(name) for name in sys.argv[1:]]) + rest.split(END)[1])


if __name__ == "__main__":
    main()
