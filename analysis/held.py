"""A target that somebody held while it was recorded: what was not seen then shows nothing."""

from __future__ import annotations

from typing import Any

from qtrace.trace import details
from qtrace.trace.reader import TraceFile
from qtrace.units import show


def held(trace: TraceFile) -> list[dict[str, Any]]:
    """The times for which it was held.

    Returns:
        For each ``why`` (in words), ``since_ns``, ``at_least_ns``, ``released_ns`` (None where it
        was not seen to go on) and ``rows``.
    """
    kinds = trace.frame["event"]
    rows = trace.frame[((kinds == "held") | (kinds == "released")).to_numpy()]
    found: list[dict[str, Any]] = []
    for kind, time_ns, row, text in rows[["event", "time_ns", "row", "detail"]].to_numpy(object):
        facts = details.parse(trace.path, str(text), int(row))
        going_on = bool(found) and found[-1]["released_ns"] is None
        if kind == "released":
            lasted = facts.get("held_ns")
            if going_on:
                found[-1]["released_ns"] = int(time_ns)
                known = lasted if type(lasted) is int else 0
                found[-1]["at_least_ns"] = max(found[-1]["at_least_ns"], known)
                found[-1]["rows"].append(int(row))
            continue
        since = facts.get("since_ns")
        since = since if type(since) is int else int(time_ns)
        if not going_on:
            why = str(facts.get("why", "held"))
            found.append({"why": why, "since_ns": since, "released_ns": None, "rows": []})
        found[-1]["at_least_ns"] = int(time_ns) - found[-1]["since_ns"]
        found[-1]["rows"].append(int(row))
    return found


def in_words(one: dict[str, Any]) -> str:
    """One of them, as half a sentence about the target."""
    return f"was {one['why']} for {show(one['at_least_ns'], 'ns')} at least"
