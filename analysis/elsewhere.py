"""Which bottom halves ran on a thread that does not own their context, watched or not."""

from __future__ import annotations

from collections import Counter
from typing import cast

from qtrace.analysis.frames import Frames
from qtrace.analysis.qemu_facts import COMPLETIONS
from qtrace.analysis.report_types import RanElsewhere

VERDICTS = ("vcpu-poll", "foreign-poll")
COLUMNS = ["name", "context", "verdict", "role", "thread", "tid"]


def ran_elsewhere(trace: Frames) -> list[RanElsewhere]:
    """Of a recording of every bottom half, those with a run of one of these verdicts.

    Returns:
        One for each bottom half, context and verdict, with the thread that ran most of them;
        ``awaited``: such a poll waits for completions of block requests (they come last).
    """
    ran: Counter[tuple[str, str]] = Counter()
    threads: dict[tuple[str, str, str], Counter[tuple[str, str, int]]] = {}
    runs = trace.instances[(trace.instances["end"] == "run").to_numpy()]
    for key, count in runs.groupby(COLUMNS, observed=True).size().items():
        name, context, verdict, role, thread, tid = cast("tuple[str, str, str, str, str, int]", key)
        ran[name, context] += count
        if verdict in VERDICTS:
            threads.setdefault((name, context, verdict), Counter())[role, thread, tid] += count
    rows: list[RanElsewhere] = []
    for (name, context, verdict), own in threads.items():
        (role, thread, tid), _most = own.most_common(1)[0]
        rows.append(
            {
                "name": name,
                "context": context,
                "verdict": verdict,
                "count": own.total(),
                "runs": ran[name, context],
                "role": role,
                "thread": thread,
                "tid": tid,
                "threads": len(own),
                "awaited": name in COMPLETIONS and context == "main",
            }
        )
    return sorted(rows, key=lambda row: (row["awaited"], -row["count"]))
