"""Samples of loops that do not come back, and of one that only has a lot to do."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from qtrace.lab.guest import Accelerator, Guest
from qtrace.process.qmp_client import QmpClient
from qtrace.record.pump import Pump, pumped
from qtrace.record.recording_options import RecordingOptions

Make = Callable[[Path], None]

STALL_AFTER_S, LIMIT_S = 0.5, 30.0
QUERIES = 500


def stuck(qemu: Path, accel: Accelerator, *, released: bool) -> Make:
    """A QMP command that sleeps in open(2) of a pipe until somebody reads it, or for ever."""

    def make(trace: Path) -> None:
        options = RecordingOptions(trace, stall_after_s=STALL_AFTER_S)
        with (
            Guest(qemu, accel, "idle") as guest,
            QmpClient(guest.second_qmp_socket, LIMIT_S) as second,
        ):
            reader, pipe = -1, guest.folder / "pipe"
            os.mkfifo(pipe)
            backend = {"type": "file", "data": {"out": pipe.name}}

            def ask() -> None:
                second.command("chardev-add", id="pipe", backend=backend)

            asked = threading.Thread(target=ask)
            with pumped(guest.pid, options, "sample ended") as pump:
                asked.start()
                _until(pump, "blocked", 3)
                if released:
                    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
                    asked.join()
                    _until(pump, "unblocked", 1)
            if not released:
                reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
                asked.join()
            os.close(reader)

    return make


def busy(qemu: Path, accel: Accelerator) -> Make:
    """A guest that writes to its flash chip, and a client that asks without a pause."""

    def make(trace: Path) -> None:
        with (
            Guest(qemu, accel) as guest,
            pumped(guest.pid, RecordingOptions(trace, stall_after_s=STALL_AFTER_S), "sample ended"),
        ):
            for _number in range(QUERIES):
                guest.qmp.command("query-block")

    return make


def _until(pump: Pump, event: str, count: int) -> None:
    """Until the recording has as many rows of a kind."""
    limit, seen = time.monotonic() + LIMIT_S, 0
    while seen < count:
        assert time.monotonic() < limit, event
        seen += sum(row.event == event for row in pump.wait(0.05))
