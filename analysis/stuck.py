"""Loops that did not come back: what the looks of a recording show together.

A recorder writes ``blocked`` rows without a bottom half about a thread that was not in its loop,
and an ``unblocked`` row when that is over. Two rows that show the same wait prove that the thread
was stuck from the one to the other.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from qtrace.analysis.looks import APART_NS, ends_of_waits, looks_of, same_wait, unmoved
from qtrace.trace.reader import TraceFile
from qtrace.units import show

# Where those move whom a thread waits for, or it polls, the looks have to be so far apart: on a
# crowded host a sound guest may stand still for half a second.
MOVING_NS = 2_000_000_000
STUCK, STRANDED, COMPUTES = "stuck", "stranded", "computes"
# What a row says of its own time (``computing`` in qtrace/qemu/aio/findings.py): it went on.
SO_FAR = re.compile(r", for at least [\d.]+ s\Z")
WAITS = (STUCK, STRANDED)


@dataclass(frozen=True)
class Away:
    """One wait, or one callback, of a loop's thread, as one or more rows show it.

    Attributes:
        kind: ``stuck``, ``stranded`` (the bottom halves that it waits for are the cause),
            ``computes``, or ``unclear`` (it was not seen in its loop, and not what it did).
        waits: the named functions of the wait or the callback, leaf first.
        command: the monitor command that it was in, else empty.
        polls: the context that it polled, else empty.
        first_ns, last_ns: the first and the last look.
        at_least_ns: for how long at least.
        over_ns: when it was seen to be over; None where it was not.
        came_back: it was seen in its loop then.
        bql: it held the BQL in each look; None where one does not tell.
        rows: the numbers of the rows.
        proven: the same wait in two looks far enough apart; one that was over before the limit of
            the recording (``--stall-after``) is none.
    """

    kind: str
    tid: int
    thread: str
    role: str
    sentence: str
    waits: tuple[str, ...]
    command: str
    polls: str
    stack: str
    first_ns: int
    last_ns: int
    at_least_ns: int
    over_ns: int | None
    came_back: bool
    bql: bool | None
    rows: tuple[int, ...]
    proven: bool


def threads_away(trace: TraceFile) -> list[Away]:
    """All of a trace, in the order in which they were first seen."""
    looks = [look for look in looks_of(trace) if not look["name"] and not look["callback"]]
    over = ends_of_waits(trace)
    groups: list[tuple[list[dict[str, Any]], dict[str, Any] | None]] = []
    for tid in dict.fromkeys(look["tid"] for look in looks):
        own: list[dict[str, Any]] = []
        for look in [one for one in looks if one["tid"] == tid]:
            if own and not _goes_on(own, look, _end_of(own, over)):
                groups.append((own, _end_of(own, over)))
                own = []
            own.append(look)
        groups.append((own, _end_of(own, over)))
    limit = trace.header.get("stall_after_ns")
    limit_ns = limit if type(limit) is int else 0
    found = [_away(looks, end, limit_ns) for looks, end in groups]
    return sorted(found, key=lambda one: one.first_ns)


def is_proven_stuck(one: Away, told: Container[int] = ()) -> bool:
    """Whether it is a finding of its own.

    Args:
        told: the threads that bottom halves are proven to be stranded by: these are the cause
            then.
    """
    return one.proven and (one.kind == STUCK or one.tid not in told)


def doubt(one: Away, told: Container[int] = ()) -> str:
    """What it leaves open of the whole recording, in words; empty when nothing.

    That a thread computed, or was seen once in a wait, is over with its coming back.
    """
    if one.proven or one.over_ns is not None or (one.kind == STRANDED and one.tid in told):
        return ""
    if one.kind in WAITS:
        return f"one look only shows it, which proves nothing: {one.sentence}"
    return one.sentence


def _goes_on(own: list[dict[str, Any]], look: dict[str, Any], end: dict[str, Any] | None) -> bool:
    """Whether a look shows once more what earlier ones show."""
    first = own[0]
    if end is not None and end["time_ns"] <= look["time_ns"]:
        return False
    if first["kind"] in WAITS and look["kind"] in WAITS:
        return same_wait(first, look)
    return bool(look["kind"] == first["kind"] and look["waits_in"][-1:] == first["waits_in"][-1:])


def _is_proof(first: dict[str, Any], last: dict[str, Any]) -> bool:
    """Whether two looks at one wait are far enough apart."""
    apart = last["time_ns"] - first["time_ns"]
    still = unmoved(first, last) and first["behind"] == last["behind"]
    return bool(apart >= (APART_NS if still else MOVING_NS))


def _end_of(own: list[dict[str, Any]], over: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row that says that it was over, where there is one."""
    first = own[0]
    later = [end for end in over if end["tid"] == first["tid"] and end["row"] > first["row"]]
    return later[0] if later else None


def _away(looks: list[dict[str, Any]], end: dict[str, Any] | None, limit_ns: int) -> Away:
    first, last = looks[0], looks[-1]
    if end is not None and end["time_ns"] < last["time_ns"]:
        end = None
    known = type(first["since_ns"]) is int and first["since_ns"] > 0
    # A look begins before it has seen the thread: that is not when the wait began.
    lasted = max(last["time_ns"] - (first["since_ns"] if known else first["time_ns"]), 0)
    held = [None if look["bql"] is None else look["bql"] == look["tid"] for look in looks]
    if end is not None:
        lasted = max(lasted, end["blocked_ns"])
    kind = last["kind"]
    sentence = last["sentence"]
    if kind == COMPUTES:
        sentence = SO_FAR.sub(f", for at least {show(lasted, 'ns')}", sentence)
    proven = kind in WAITS and any(_is_proof(first, look) for look in looks[1:])
    return Away(
        kind=kind,
        tid=last["tid"],
        thread=last["thread"],
        role=last["role"],
        sentence=sentence,
        waits=tuple(map(str, last["waits_in"])),
        command=str(last["command"]),
        polls=last["context"],
        stack=last["stack"],
        first_ns=first["time_ns"],
        last_ns=last["time_ns"],
        at_least_ns=int(lasted),
        over_ns=None if end is None else end["time_ns"],
        came_back=end is not None and end["came_back"],
        bql=None if None in held else all(held),
        rows=tuple(sorted({first["row"], last["row"], *([] if end is None else [end["row"]])})),
        proven=proven and (end is None or lasted >= limit_ns),
    )
