"""What has happened to a QEMU, once: no look can show it any more."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from qtrace.trace.schema import Event

CRASHED, KILLED = "crashed", "killed"
# What a program of its own doing ends by (core(5)); SIGKILL is another's doing, or the kernel's.
CRASHES = frozenset({
    signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS,
    signal.SIGTRAP,
})  # fmt: skip
# Whoever is none of these may run it (docs/verdicts.md).
FOREIGN = {"vcpu": "vcpu-poll", "migration": "foreign-poll", "worker": "foreign-poll"}
POLL = "aio_poll"


@dataclass(frozen=True)
class Happened:
    """Of one QEMU; ``kind`` and ``sentence`` as of ``Finding``."""

    kind: str
    sentence: str


def ran(row: Event) -> Happened | None:
    """What is wrong with where a watched bottom half has run; None where nothing is proven."""
    kind = FOREIGN.get(row.role)
    functions = {frame.split("+0x")[0] for frame in row.stack}
    if kind is None or POLL not in functions:
        return None
    return Happened(
        kind,
        f"{row.name} was run by {row.tid} ({row.role}) inside of {POLL}(): "
        f"{' < '.join(reversed(row.stack[-6:]))}",
    )


def how_it_ended(status: dict[str, int]) -> str:
    """``SIGSEGV``, ``status 1``, or empty where the kernel does not tell (any more)."""
    if "signal" in status:
        try:
            return signal.Signals(status["signal"]).name
        except ValueError:
            return f"signal {status['signal']}"
    return f"status {status['status']}" if "status" in status else ""


def ended(status: dict[str, int]) -> Happened | None:
    """What is to be told of an end; None of one in good order, or that is not known."""
    number = status.get("signal")
    if number is None:
        return None
    how = how_it_ended(status)
    if number in CRASHES:
        return Happened(CRASHED, f"it was ended by {how}")
    if number == signal.SIGKILL:
        return Happened(KILLED, f"it was ended by {how}: somebody's, or for want of memory")
    return None
