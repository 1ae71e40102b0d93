"""A monitor command that keeps its thread, and with it the main loop, for too long."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from qtrace.analysis.frames import Frames
from qtrace.analysis.lint import Finding, Lint, Once, Seen, Threshold
from qtrace.analysis.lint_groups import Groups, place_of
from qtrace.analysis.wording import thread_of, times
from qtrace.units import show


def check(trace: Frames, threshold: Threshold) -> Seen:
    """Commands that took longer than the threshold from ``begin`` to ``end``.

    Both are the same activation of do_qmp_dispatch_bh(), on one stack of one thread: it did not
    return to its loop in between, whatever a nested poll may have run. A command that QEMU carries
    out in its coroutine has neither.
    """
    if not {"begin", "end"} <= set(trace.header.get("qmp", [])):
        return Seen(doubts=["it needs the rows of QMP commands"])
    found = trace.carried_out
    long = (found["took"] >= max(threshold.value, 1)).to_numpy()
    unsure = ~found["sure"].to_numpy(np.bool_)
    findings = []
    rows = ("begun_row", "ended_row")
    groups = Groups(("name", "tid"), "took", rows)
    groups.add(found[long & ~unsure])
    for group in groups.groups():
        one = group.worst
        least, still = "", ""
        if not one["ended"]:
            least, still = " or longer", "; it had not ended when the recording did"
        findings.append(
            Finding(
                "long-command",
                trace,
                f"QMP {one['name']} ran {show(one['took'], 'ns')}{least} on {thread_of(one)}"
                f" ({times(group.count)} over {threshold}){_gone(trace, one)}{still}",
                **place_of(one),
                time_ns=int(one["time_ns"]),
                value=int(one["took"]),
                unit="ns",
                rows=group.rows,
                count=group.count,
                facts={"ended": bool(one["ended"]), "bql": _bql(trace, one)},
            )
        )
    lost = int((long & unsure).sum())
    doubts = [f"of {lost:,} commands steps may have been lost"] if lost else []
    return Seen(findings, doubts, {"carried_out": len(found)})


def _gone(trace: Frames, one: dict[str, Any]) -> str:
    """What could not go on meanwhile, as far as the recording shows it."""
    if one["role"] != "main":
        return ""
    if _bql(trace, one):
        return ": the BQL and the main loop were gone"
    return ": the main loop was gone"


def _bql(trace: Frames, one: dict[str, Any]) -> bool | None:
    """Whether the thread held the BQL in every look at it meanwhile; None without one that tells.

    Some commands give it up while they wait, as stop does for its vCPUs.
    """
    inside = [
        away.bql
        for away in trace.away
        if away.tid == one["tid"]
        and away.first_ns <= one["until_ns"]
        and away.last_ns >= one["time_ns"]
    ]
    return None if not inside or None in inside else all(inside)


LINT = Lint(
    name="long-command",
    sentence="a QMP command kept the main loop for too long",
    threshold=Threshold(100e6, "ns"),
    why="how long a command is carried out; 0.1 s is what a person at a console or a QMP client"
    " notices",
    needs="",
    evidence="the begin and the end of the command",
    source="gitlab#1307, LP#1831750, LP#1472083",
    fold=partial(Once, check),
)
