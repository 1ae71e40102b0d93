"""Threads, counts and times as sentences have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qtrace.knowledge import SNAPSHOT_JOBS

SENTENCES = {
    "vcpu-poll": "{name} ran inside a vCPU thread's aio_poll() {times} of {total}",
    "foreign-poll": "{name} ran on a thread that does not own its context {times} of {total}",
    "stranded": "{name} cannot run: the only thread that could is blocked ({times} of {total})",
    "pending": "{name} had not run {times} of {total} when the recording ended",
    # Its own thread ran it: that is no finding, and must not sound like one.
    "nested-poll": "{name} ran on the main thread, its own, {times} of {total}, inside a nested"
    " aio_poll()",
    "iothread": "{name} ran on the IOThread that owns its context {times} of {total}",
    "main-loop": "{name} ran in the main loop {times} of {total}",
    "cancelled": "{name} was cancelled before it ran {times} of {total}",
    "deleted": "{name} was deleted before it ran {times} of {total}",
    "not-seen": "{name} was not scheduled while the recording ran",
    "inconclusive": "what became of {name} is not certain",
}
# So many that were watched and not seen are named, of more (-b '*') the number is told.
UNSEEN = 5
DURING_STUCK = ", for a part of which the main loop or an IOThread was stuck"
ROLES = {"vcpu": "vCPU thread", "iothread": "IOThread", "migration": "migration thread",
         "worker": "worker thread"}  # fmt: skip


def who(role: str, thread: str, tid: int) -> str:
    """A thread in a sentence."""
    if role == "main":
        return f"the main thread (tid {tid})"
    return f"{ROLES.get(role, 'thread')} {thread} (tid {tid})"


def thread_of(one: Any) -> str:
    """The thread of a row of ``instances``, ``runs`` or ``events``, in a sentence."""
    return who(str(one["role"]), str(one["thread"]), int(one["tid"]))


def verdict_sentence(half: Any, stuck: bool) -> str:
    """The verdict of a bottom half (an item of ``bottom_halves`` in a report).

    Args:
        stuck: a loop was, for a part of the recording.
    """
    verdict, counts = half["verdict"], half["verdicts"]
    count = counts.get(verdict, 0)
    sentence = SENTENCES[verdict].format(
        name=half["name"],
        times="1 time" if count == 1 else f"{count} times",
        total=sum(counts.values()),
    )
    if verdict == "not-seen" and stuck:
        sentence += DURING_STUCK
    if verdict == "vcpu-poll" and half["name"] in SNAPSHOT_JOBS:
        sentence += " (QEMU issue 2111)"
    return sentence


def not_seen_sentence(report: Mapping[str, Any]) -> str:
    """One sentence for all bottom halves of a report in which none was scheduled."""
    names = [half["name"] for half in report["bottom_halves"]]
    during = "while the recording ran"
    globs = sorted({glob for trace in report["traces"] for glob in trace["by_all"]})
    if not names and globs:
        text = f"no bottom half that matches {' or '.join(globs)} was scheduled {during}"
    elif not names:
        text = "no bottom half was watched: the program has none of those of the snapshot jobs"
    elif len(names) > UNSEEN:
        text = f"none of {len(names)} bottom halves was scheduled {during}"
    elif len(names) == 1:
        text = f"{names[0]} was not scheduled {during}"
    else:
        text = f"{listed(names)} were not scheduled {during}"
    if names and report["stuck"]:
        text += DURING_STUCK
    called = {call["name"] for call in report["calls"]}
    if called & {SNAPSHOT_JOBS[name] for name in names if name in SNAPSHOT_JOBS}:
        text += ": the snapshots above had no job, as those of HMP's savevm and loadvm"
    return text


def listed(names: Sequence[str]) -> str:
    """``a, b and c``; of many their number."""
    if len(names) > UNSEEN:
        return f"{len(names)} bottom halves"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def times(count: int) -> str:
    """``once``, ``7 times``."""
    return "once" if count == 1 else f"{count:,} times"


def capital(text: str) -> str:
    """As a sentence begins."""
    return text if text.startswith("vCPU") else text[:1].upper() + text[1:]
