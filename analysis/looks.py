"""What a recorder saw of threads in the way: the ``blocked`` and ``unblocked`` rows."""

from __future__ import annotations

from typing import Any

from qtrace.trace import details
from qtrace.trace.details import address_of
from qtrace.trace.reader import TraceFile

# Looks closer than this to each other are one.
APART_NS = 100_000_000
TEXTS = ("pending_in", "sentence")


def looks_of(trace: TraceFile) -> list[dict[str, Any]]:
    """The blocked rows in time order, with what their details say."""
    rows = trace.frame[trace.frame["event"] == "blocked"]
    looks = []
    for values in rows.astype(object).to_numpy():
        look = dict(zip(map(str, rows.columns), values, strict=True))
        facts = details.parse(trace.path, str(look["detail"]), int(look["row"]))
        look |= {key: facts.get(key, "") for key in (*TEXTS, "waits_at", "behind")}
        look |= {key: facts.get(key, 0) for key in ("cpu_ns", "turns", "since_ns")}
        look |= {"kind": facts.get("kind", ""), "command": facts.get("command", "")}
        waits, holder = facts.get("waits_in"), facts.get("bql")
        look["waits_in"] = waits if isinstance(waits, list) else []
        look["bql"] = holder if type(holder) is int else None
        look["end"] = facts.get("end") is True
        look["pending_ctx"] = address_of(facts.get("pending_ctx"))
        looks.append(look)
    return looks


def same_place(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two looks show a thread at one and the same place of the same stack."""
    keys = ("tid", "stack", "waits_at", "context")
    return bool(one["stack"]) and all(one[key] == other[key] for key in keys)


def same_wait(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """The same place, and the thread polls there, or has not run at all in between."""
    return same_place(one, other) and (unmoved(one, other) or one["context"] != "")


def unmoved(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a thread was given no processor between two looks."""
    same = (one["cpu_ns"], one["turns"]) == (other["cpu_ns"], other["turns"])
    return bool(one["cpu_ns"]) and same


def ends_of_waits(trace: TraceFile) -> list[dict[str, Any]]:
    """The ``unblocked`` rows in time order."""
    rows = trace.frame[(trace.frame["event"] == "unblocked").to_numpy()]
    ends = []
    for time_ns, tid, row, text in rows[["time_ns", "tid", "row", "detail"]].to_numpy(object):
        facts = details.parse(trace.path, str(text), int(row))
        lasted = facts.get("blocked_ns")
        ends.append(
            {
                "time_ns": int(time_ns),
                "tid": int(tid),
                "row": int(row),
                "blocked_ns": lasted if type(lasted) is int else 0,
                "came_back": facts.get("came_back") is True,
            }
        )
    return ends
