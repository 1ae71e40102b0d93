"""The made part of docs/accuracy.md: how often what qtrace says is so.

From the top of the tree: ``.venv/bin/python -m scripts.accuracy [ROWS.csv...]`` writes it again;
the rows are those of ``qtrace lab hunt -o``.
"""

from __future__ import annotations

import sys
import tomllib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from qtrace.analysis import Trace, open_traces
from qtrace.analysis.report import judge_opened
from scripts.hunt_page import END, markdown
from tests.unit.losing import lose

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/accuracy.md"
SAMPLES = ROOT / "analysis/samples"
BEGIN = "<!-- made by `python -m scripts.accuracy` -->\n"
SEEDS = 10


def forced(labels: dict[str, Any], traces: dict[str, Trace]) -> str:
    """Outcomes that steering, rerouting or the guest brought about, and what they are judged as."""
    wanted: Counter[str] = Counter()
    judged: Counter[tuple[str, str]] = Counter()
    files = 0
    for name, label in labels.items():
        if not label["forced"] or "either" in label:
            continue
        files += 1
        report = judge_opened([traces[name]])
        found = {half["name"]: half["verdicts"] for half in report["bottom_halves"]}
        for half, verdicts in label["verdicts"].items():
            for verdict, count in verdicts.items():
                wanted[verdict] += count
                right = min(count, found[half].get(verdict, 0))
                judged[verdict, "right"] += right
                judged[verdict, "inconclusive"] += min(
                    count - right, found[half].get("inconclusive", 0)
                )
    rows = [
        [
            verdict, f"{count:,}", f"{judged[verdict, 'right']:,}",
            f"{judged[verdict, 'inconclusive']:,}",
            f"{count - judged[verdict, 'right'] - judged[verdict, 'inconclusive']:,}",
        ]
        for verdict, count in sorted(wanted.items())
    ]  # fmt: skip
    head = f"{sum(wanted.values()):,} forced outcomes in {files} recordings of 7.2 and 10.0:\n\n"
    return head + markdown(
        ["forced", "times", "judged so", "inconclusive", "judged otherwise"], rows
    )


def with_losses(traces: dict[str, Trace]) -> str:
    """The same recordings, one event in a hundred lost: what is then claimed of each instance."""
    counts: Counter[str] = Counter()
    for trace in traces.values():
        whole = _verdicts(trace)
        for seed in range(SEEDS):
            part = Trace(lose(trace.file, seed, burst=(1, 20)[seed % 2]))
            for rows, verdict in _verdicts(part).items():
                if verdict == "inconclusive":
                    counts["inconclusive"] += 1
                elif whole.get(rows) == verdict:
                    counts["as without losses"] += 1
                else:
                    counts["otherwise"] += 1
    order = ("as without losses", "inconclusive", "otherwise")
    total = sum(counts.values())
    head = f"{len(traces)} recordings, {SEEDS} seeds each, {total:,} instances:\n\n"
    return head + markdown(list(order), [[f"{counts[name]:,}" for name in order]])


def _verdicts(trace: Trace) -> dict[tuple[int, ...], str]:
    """By the rows of its schedule and its end."""
    rows = trace.instances[["scheduled_row", "ended_row"]].fillna(-1).astype(int)
    pairs = [tuple(pair) for pair in rows.to_numpy().tolist()]
    return dict(zip(pairs, trace.instances["verdict"].astype(str), strict=True))


def lints(labels: dict[str, Any], traces: dict[str, Trace]) -> str:
    """What each lint says of each recording, and what its label says that it shows."""
    said: Counter[tuple[bool, str]] = Counter()
    for name, trace in traces.items():
        shows = labels[name].get("lints", {}).get("finding", ())
        for result in trace.lint():
            said[result.lint in shows, result.result] += 1
    order = ("finding", "inconclusive", "none")
    rows = [
        [title, *(f"{said[shows, answer]:,}" for answer in order)]
        for shows, title in ((True, "shows it"), (False, "does not"))
    ]
    return markdown(["the recording", *order], rows)


def hunted(paths: list[Path]) -> str:
    """What guests that check themselves counted where nothing was found."""
    rows = pd.concat([pd.read_csv(path) for path in paths], ignore_index=True)
    fine = rows[rows["outcome"] == "ok"]
    commands, slow = int(fine["asked"].sum()), int((rows["outcome"] == "slow").sum())
    lines = [
        ["cells in which nothing was found", f"{len(fine):,} of {len(rows):,}"],
        ["commands that QEMU was given in them", f"{commands:,}"],
        ["reads of a register that may not change", f"{int(fine['checked'].sum()):,}, 0 wrong"],
        ["blocks that are the disk's", f"{int(fine['verified'].sum()):,}, 0 wrong"],
        ["`slow`: no answer for 5 s, and inspect accused nobody", str(slow)],
    ]  # fmt: skip
    return markdown(["of the hunt", "counted"], lines)


def main() -> None:
    labels = tomllib.loads((SAMPLES / "labels.toml").read_text())
    traces = {name: open_traces(SAMPLES / name)[0] for name in labels}
    when = datetime.now(UTC).strftime("%d %B %Y")
    parts = [
        f"Made on {when}.\n",
        "## Forced outcomes, judged without their labels\n\n" + forced(labels, traces),
        "## Lints\n\n" + lints(labels, traces),
        "## One event in a hundred lost\n\n" + with_losses(traces),
    ]
    if paths := [Path(name) for name in sys.argv[1:]]:
        parts.append("## Guests that check themselves\n\n" + hunted(paths))
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n".join(parts) + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
