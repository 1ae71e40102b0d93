"""The event row, shared by every recorder, writer and reader (docs/trace-format.md)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from qtrace.event_kinds import EventKind
from qtrace.roles import Role

FORMAT = "qtrace"
MAJOR = 1
MINOR = 2

# Frames that are no functions: what a stack that does not reach its thread's start ends in.
TRUNCATED = "[truncated]"
COROUTINE = "[coroutine]"
UNREADABLE = "[unreadable]"
# Not the whole chain was asked for: what lies further out is not known, what is shown is right.
PARTIAL = "[partial]"
# Later than any ``time_ns``: of what has no end yet.
NEVER = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Event:
    """One row. Pointers are addresses in the target, 0 when unknown.

    Attributes:
        time_ns: CLOCK_MONOTONIC nanoseconds.
        event: what happened, see qtrace/event_kinds.py.
        tid: host thread id, 0 for rows about the recording itself.
        thread: the thread's name (comm) at that time, untrusted.
        role: what the thread is for.
        name: the bottom half's name, or the called function's.
        context: ``main``, ``iohandler``, ``iothread:<id>`` or empty when not known.
        ctx: AioContext pointer.
        bh: QEMUBH pointer (a one-shot's schedule has none).
        callback: address of the callback in the target.
        opaque: the callback's argument.
        stack: frames, **root first, leaf last**, ``name+0xoffset`` or ``binary@0xaddress``.
        detail: facts of rows without columns of their own, JSON-able.
    """

    time_ns: int
    event: EventKind
    tid: int = 0
    thread: str = ""
    role: Role = ""
    name: str = ""
    context: str = ""
    ctx: int = 0
    bh: int = 0
    callback: int = 0
    opaque: int = 0
    stack: tuple[str, ...] = ()
    detail: dict[str, Any] = field(default_factory=dict)


COLUMNS = tuple(f.name for f in dataclasses.fields(Event))
POINTER_COLUMNS = ("ctx", "bh", "callback", "opaque")
INTEGER_COLUMNS = ("time_ns", "tid")
_ENCODER = json.JSONEncoder(separators=(",", ":"), sort_keys=True)


def to_row(event: Event) -> list[str]:
    """The event as CSV fields, in the order of ``COLUMNS``; absent values are empty."""
    return [
        str(event.time_ns),
        event.event,
        str(event.tid) if event.tid else "",
        _escaped(event.thread),
        event.role,
        _escaped(event.name),
        _escaped(event.context),
        *(f"{pointer:#x}" if pointer else ""
          for pointer in (event.ctx, event.bh, event.callback, event.opaque)),
        _folded(event.stack),
        _ENCODER.encode(event.detail) if event.detail else "",
    ]  # fmt: skip


@lru_cache(maxsize=1024)
def _folded(stack: tuple[str, ...]) -> str:
    """A flood of events brings few different stacks."""
    return ";".join(escape(frame, extra=";") for frame in stack)


@lru_cache(maxsize=1024)
def _escaped(text: str) -> str:
    return escape(text)


def escape(text: str, extra: str = "") -> str:
    r"""Names from the target are untrusted: control characters, and ``extra``, become ``\xNN``.

    A backslash is doubled, so that the escape can be undone.
    """
    if text.isprintable() and "\\" not in text and not any(c in text for c in extra):
        return text
    out = []
    for char in text:
        if char == "\\":
            out.append("\\\\")
        elif not char.isprintable() or char in extra:
            raw = char.encode("utf-8", "surrogateescape")
            out.append("".join(f"\\x{byte:02x}" for byte in raw))
        else:
            out.append(char)
    return "".join(out)
