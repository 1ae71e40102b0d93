"""The row of a thread that sleeps where it should not, as a look showed it."""

from __future__ import annotations

from typing import Any, cast

from qtrace.qemu.aio.findings import Finding
from qtrace.qemu.aio.model import Look
from qtrace.qemu.aio.waits import behind, is_polling
from qtrace.roles import Role
from qtrace.trace.schema import UNREADABLE, Event


def blocked_row(look: Look, finding: Finding, detail: dict[str, Any], *, at_end: bool) -> Event:
    """A ``blocked`` row without a bottom half (docs/trace-format.md).

    Args:
        detail: what it has besides the facts of the thread.
        at_end: this is the last look of the recording.
    """
    thread = finding.thread
    polls = look.context(thread.polls[0].ctx) if is_polling(thread) else None
    frames = tuple(reversed(thread.frames))
    facts = {
        "blocked_in": thread.blocked_in,
        "waits_at": [f"{value:#x}" for value in thread.waits_at],
        "cpu_ns": thread.cpu_ns,
        "turns": thread.turns,
        "behind": behind(look, thread),
        "sentence": finding.sentence,
    }
    return Event(
        time_ns=look.time_ns,
        event="blocked",
        tid=thread.tid,
        thread=thread.name,
        role=cast(Role, thread.role),
        context=polls.label if polls else "",
        ctx=polls.address if polls else 0,
        stack=frames if thread.whole or not frames else (UNREADABLE, *frames),
        detail=detail | facts | ({"end": True} if at_end else {}),
    )
