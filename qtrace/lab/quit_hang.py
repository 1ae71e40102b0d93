"""The hang of the proposed fix: a guest told to quit waits for what cannot run any more."""

from __future__ import annotations

import time
from contextlib import suppress

from qtrace.errors import QmpFailed
from qtrace.lab.guest import Guest
from qtrace.process.qmp_client import QmpClient
from qtrace.record.pump import Pump
from qtrace.trace.schema import Event

# What qemu_cleanup() waits in.
WAITS_IN = "job_finish_sync_locked"
QUIT_S = 2.0


def quit_guest(guest: Guest) -> None:
    """Tell it; QEMU may hang before or after it has answered."""
    with suppress(QmpFailed), QmpClient(guest.second_qmp_socket, QUIT_S) as client:
        client.command("quit")


def is_blocked(event: Event) -> bool:
    """Whether this look shows the main thread in that wait."""
    return event.event == "blocked" and any(frame.startswith(WAITS_IN) for frame in event.stack)


def until_proven(pump: Pump, deadline: float) -> list[Event]:
    """The rows until two looks show the same wait; ``deadline`` is one of time.monotonic()."""
    seen: list[Event] = []
    while sum(map(is_blocked, seen)) < 2 and time.monotonic() < deadline and pump.runs:
        seen += pump.wait(0.1)
    return seen
