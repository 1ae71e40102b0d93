"""Which bottom halves ran on a thread that does not own their context, watched or not."""

from __future__ import annotations

from collections import Counter
from typing import cast

from qtrace.analysis.frames import Part
from qtrace.analysis.qemu_facts import COMPLETIONS
from qtrace.analysis.report_types import RanElsewhere

VERDICTS = ("vcpu-poll", "foreign-poll")
COLUMNS = ["name", "context", "verdict", "role", "thread", "tid"]


class Elsewhere:
    """Of a recording of every bottom half, those with a run of one of these verdicts."""

    def __init__(self) -> None:
        self._ran: Counter[tuple[str, str]] = Counter()
        self._threads: dict[tuple[str, str, str], Counter[tuple[str, str, int]]] = {}

    def add(self, part: Part) -> None:
        """What is the part's own."""
        ran = part.own & (part.instances["end"] == "run").to_numpy()
        runs = part.instances.loc[ran, COLUMNS]
        for key, count in runs.groupby(COLUMNS, observed=True).size().items():
            found = cast("tuple[str, str, str, str, str, int]", key)
            name, context, verdict, role, thread, tid = found
            self._ran[name, context] += count
            if verdict in VERDICTS:
                own = self._threads.setdefault((name, context, verdict), Counter())
                own[role, thread, tid] += count

    def end(self) -> list[RanElsewhere]:
        """One for each bottom half, context and verdict, with the thread that ran most of them;
        ``awaited``: such a poll waits for completions of block requests (they come last).
        """
        rows: list[RanElsewhere] = []
        for (name, context, verdict), own in sorted(self._threads.items()):
            (role, thread, tid), _most = min(own.items(), key=lambda one: (-one[1], one[0]))
            rows.append(
                {
                    "name": name,
                    "context": context,
                    "verdict": verdict,
                    "count": own.total(),
                    "runs": self._ran[name, context],
                    "role": role,
                    "thread": thread,
                    "tid": tid,
                    "threads": len(own),
                    "awaited": name in COMPLETIONS and context == "main",
                }
            )
        return sorted(rows, key=lambda row: (row["awaited"], -row["count"]))
