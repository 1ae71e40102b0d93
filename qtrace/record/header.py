"""What the first and the last row of a recording say about it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from qtrace.inspection.qemu import LiveQemu
from qtrace.record.plans import Plans
from qtrace.record.qmp_rows import Commands
from qtrace.sites.scan import BottomHalf
from qtrace.sites.watch_plan import PLAIN_CALLS, Site, WatchPlan
from qtrace.trace.schema import FORMAT, MAJOR, MINOR, Event, escape

if TYPE_CHECKING:
    from qtrace.record.all_events.all_recorder import AllRecorder


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
    qemu: LiveQemu,
    plans: Plans,
    everything: AllRecorder | None,
    stall_after_ns: int,
) -> Event:
    """What is recorded of whom.

    Args:
        time_ns: when the last probe was set; the recording begins then.
        stall_after_ns: how long a loop may be away before it is told; 0 where none is watched.
    """
    wall_clock = datetime.now(UTC) - timedelta(microseconds=(time.monotonic_ns() - time_ns) / 1e3)
    scan, plan = plans.scan, plans.watch
    detail: dict[str, Any] = {
        "format": FORMAT,
        "version": [MAJOR, MINOR],
        "wall_clock": wall_clock.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "recorder": recorder,
        "target": {
            "pid": qemu.pid,
            "program": escape(qemu.program),
            "exe": escape(qemu.process.exe_path),
            "version": scan.version,
            "build_id": scan.build_id,
            "host": escape(os.uname().nodename),
            "machine": os.uname().machine,
        },
        "watched": [_watched(half) for half in plan.watched],
        "by_all": list(plan.by_all),
        "calls": [name for name in PLAIN_CALLS if any(s.name == name for s in plan.sites)],
        "returns": sorted({site.name for site in plan.sites if site.kind == "return"}),
        "stall_after_ns": stall_after_ns,
        "qmp": sorted({site.name for site in plan.sites if site.kind in ("qmp", "job")}),
    }
    if everything is not None:
        detail["all"] = everything.describe()
        if everything.stacks_every:
            detail["stacks_every"] = everything.stacks_every
    return Event(time_ns, "attach", detail=detail)


def detach_row(
    reason: str,
    until_ns: int,
    plan: WatchPlan,
    hits_of: Mapping[Site, int],
    lost: int,
    commands: Commands,
    everything: AllRecorder | None,
    pauses_ms: Mapping[str, float],
) -> Event:
    """What came of the recording.

    Args:
        lost: hits of the watched bottom halves' probes that left no row.
    """
    hits: Counter[str] = Counter({site.label: 0 for site in plan.sites})
    for site, count in hits_of.items():
        hits[site.label] += count
    detail: dict[str, Any] = {
        "reason": reason,
        "until_ns": until_ns,
        "lost": lost,
        "hits": dict(hits),
        "silent": silent_probes(plan, hits),
        "qmp": {"commands": commands.taken, "left_out": commands.left_out},
    }
    if everything is not None:
        counts = everything.counts
        detail["lost"] += counts.lost
        detail["all"] = asdict(counts) | everything.dropped
        if everything.stacks is not None:
            detail["all"]["stacks"] = everything.stacks.count
    if pauses_ms:
        detail["paused_ms"] = {phase: round(ms, 3) for phase, ms in pauses_ms.items()}
    return Event(time.monotonic_ns(), "detach", detail=detail)


def _watched(half: BottomHalf) -> dict[str, Any]:
    return {
        "name": half.name,
        "callback": f"{half.callback:#x}",
        "call_sites": [f"{site.address:#x}" for site in half.sites],
        "context": half.sites[0].context,
    }
