"""Rows as the recorders write them, for the tests of everything that reads traces."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from qtrace.analysis.arrays import filled
from qtrace.trace.reader import TraceFile, read_trace
from qtrace.trace.schema import COROUTINE, Event
from qtrace.trace.writer import CsvWriter

PID, VCPU_TID, IOTHREAD_TID, WORKER_TID = 100, 101, 102, 103
NAME = "snapshot_save_job_bh"
CALLBACK, CTX, OPAQUE = 0xFFFF_F000_0060_FFE0, 0x1000, 0x55

ROOT = ("_start", "main", "qemu_default_main+0x9", "qemu_main_loop+0x30", "main_loop_wait+0x7a")
LEAF = ("aio_bh_poll+0xc5", NAME)
DISPATCH = ("g_main_context_dispatch+0x17a", "aio_ctx_dispatch+0xe", "aio_dispatch+0x53")
MAIN_LOOP = (*ROOT, *DISPATCH, *LEAF)
DEVICE = ("memory_region_dispatch_write+0xe8", "blk_pwrite+0xcf", "aio_poll+0x124")
VCPU_POLL = ("start_thread", "mttcg_cpu_thread_fn+0x1", "cpu_exec+0x2", *DEVICE, *LEAF)
NESTED = (*ROOT, "job_finish_sync_locked+0x80", "aio_poll+0x124", *LEAF)
NESTED_FOR_DEVICE = (*ROOT, *DEVICE, *LEAF)
BARE_POLL = ("start_thread", "qemu-system-x86_64@0x900000", "aio_poll+0x124", *LEAF)
SCHEDULE_STACK = (COROUTINE, "job_co_entry+0x20", "qemu-system-x86_64@0x60a100")


def attach(**changes: Any) -> Event:
    """The first row; keyword arguments replace facts of its header."""
    header = {
        "format": "qtrace",
        "version": [1, 0],
        "wall_clock": "2026-01-31T12:00:00Z",
        "recorder": "ebpf",
        "target": {
            "pid": PID,
            "version": "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)",
            "build_id": "00112233445566778899aabbccddeeff00112233",
            "exe": "/usr/bin/qemu-system-x86_64",
            "program": "qemu-system-x86_64",
        },
        "watched": [
            {"name": NAME, "callback": f"{CALLBACK:#x}", "call_sites": [], "context": "main"}
        ],
        "calls": ["save_snapshot", "load_snapshot", "vm_stop"],
    }
    return Event(1, "attach", detail=header | changes)


def detach(time_ns: int = 10**9, **facts: Any) -> Event:
    return Event(time_ns, "detach", detail={"reason": "interrupted", "lost": 0} | facts)


def lost(since_ns: int, until_ns: int, count: int = 1) -> Event:
    return Event(until_ns, "lost", detail={"count": count, "since_ns": since_ns})


def schedule(time_ns: int, **changes: Any) -> Event:
    return _event(time_ns, "schedule", changes, stack=SCHEDULE_STACK)


def run(time_ns: int, **changes: Any) -> Event:
    return _event(time_ns, "run", changes, bh=0x99, stack=MAIN_LOOP)


def run_on_vcpu(time_ns: int, **changes: Any) -> Event:
    vcpu = {"tid": VCPU_TID, "role": "vcpu", "thread": "CPU 0/TCG", "stack": VCPU_POLL}
    return run(time_ns, **(vcpu | changes))


def _event(time_ns: int, kind: Any, changes: dict[str, Any], **usual: Any) -> Event:
    """By the main thread, into the main context, unless ``changes`` say otherwise."""
    thread = {"tid": PID, "role": "main", "thread": "qemu-system-x86"}
    what = {"name": NAME, "context": "main", "ctx": CTX, "callback": CALLBACK, "opaque": OPAQUE}
    columns: dict[str, Any] = {**thread, **what, **usual, **changes}
    return Event(time_ns, kind, **columns)


def write(path: Path, events: Iterable[Event]) -> Path:
    with CsvWriter(path, force=True) as writer:
        writer.write(events)
    return path


def recording(path: Path, *events: Event, **header: Any) -> TraceFile:
    """A complete trace of these events, written to ``path`` and read back."""
    return read_trace(write(path, [attach(**header), *events, detach()]))


def numbered_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """The frame ``runs`` with -1 for each number that is absent."""
    columns = ("end_ns", "instance", "scheduled_ns", "outer", "parent")
    return runs.assign(**{column: filled(runs[column]) for column in columns})
