"""What the first and the last row of a recording say about it."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from qtrace.recorder.all_recorder import AllRecorder
from qtrace.target.process import Process
from qtrace.target.scan import BottomHalf, Scan
from qtrace.target.watch import PLAIN_CALLS, Site, WatchPlan
from qtrace.trace.schema import FORMAT, MAJOR, MINOR, Event, escape


def silent_probes(plan: WatchPlan, hits: Counter[str]) -> list[str]:
    """The probes that never fired although their counterpart did, more than once."""
    silent = []
    for half in plan.watched:
        pair = (Site("schedule", half.name, 0).label, Site("run", half.name, 0).label)
        for label, other in (pair, pair[::-1]):
            if not hits[label] and hits[other] > 1:
                silent.append(label)
    return silent


def attach_row(
    time_ns: int,
    recorder: str,
    process: Process,
    scan: Scan,
    plan: WatchPlan,
    everything: AllRecorder | None,
) -> Event:
    detail: dict[str, Any] = {
        "format": FORMAT,
        "version": [MAJOR, MINOR],
        "wall_clock": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "recorder": recorder,
        "target": {
            "pid": process.pid,
            "program": escape(process.program),
            "exe": escape(process.exe_path),
            "version": scan.version,
            "build_id": scan.build_id,
        },
        "watched": [_watched(half) for half in plan.watched],
        "calls": [name for name in PLAIN_CALLS if any(s.name == name for s in plan.sites)],
        "returns": sorted({site.name for site in plan.sites if site.kind == "return"}),
        "qmp": sorted({site.name for site in plan.sites if site.kind in ("qmp", "job")}),
    }
    if everything is not None:
        detail["all"] = everything.describe()
        if everything.stacks_every:
            detail["stacks_every"] = everything.stacks_every
    return Event(time_ns, "attach", detail=detail)


def _watched(half: BottomHalf) -> dict[str, Any]:
    return {
        "name": half.name,
        "callback": f"{half.callback:#x}",
        "call_sites": [f"{site.address:#x}" for site in half.sites],
        "context": half.sites[0].context,
    }
