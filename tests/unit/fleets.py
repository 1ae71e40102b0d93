"""Folders of small recordings, each of other content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.unit.event_rows import attach, detach, run, run_on_vcpu, schedule, write

BUILDS = ("aa" * 20, "bb" * 20)


def saves(
    path: Path, count: int = 10, strikes: int = 0, started_ns: int = 0, **target: Any
) -> Path:
    """So many saves, of which the last ones ran on a vCPU thread, begun at some time."""
    header = attach()
    facts = {**header.detail, "target": {**header.detail["target"], **target}}
    events = [attach(**facts)]
    for number in range(count):
        at = started_ns + 1000 * (number + 1)
        opaque = {"opaque": 0x100 + number}
        ran = run if number < count - strikes else run_on_vcpu
        events += [schedule(at, **opaque), ran(at + 50, **opaque)]
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, [*events, detach(started_ns + 1000 * (count + 2))])


def recordings(folder: Path, count: int) -> Path:
    """Recordings of two builds, of which one runs a save on a vCPU thread here and there."""
    for number in range(count):
        strikes = 3 if number % 2 and number % 3 == 0 else 0
        name = folder / f"host{number % 5}" / f"{number:05}.csv"
        saves(name, 10, strikes, 10**6 * number, build_id=BUILDS[number % 2])
    return folder
