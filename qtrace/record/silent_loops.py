"""While recording: loops that do not come back, whatever is pending or watched.

A look that does not find a loop's thread in its loop begins a watch (inspection/proof.py): it is
seen again and again until it is in its loop, or looks show that it stays where it is. Nothing is
concluded from less than two of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

from qtrace.inspection.answer import waits_for_requests
from qtrace.inspection.looker import Looker
from qtrace.inspection.proof import APART_NS, ENOUGH_NS, Proof, Watch, needs_longer, prove, shown_by
from qtrace.qemu.aio.findings import (
    COMPUTES,
    STUCK,
    Finding,
    explain,
    loop_threads,
    stays,
    suspects,
)
from qtrace.qemu.aio.model import Context, Look, Thread
from qtrace.qemu.aio.waits import asleep_ns, in_loop
from qtrace.record.blocked_rows import blocked_row
from qtrace.record.in_flight import InFlight
from qtrace.roles import Role
from qtrace.trace.schema import Event
from qtrace.units import show

# So often the threads under suspicion are seen; once takes some 0.1 ms.
SEE_EVERY_NS = 50_000_000
# Of the others it is seen so often whether they have moved: that takes two small files each.
FEWEST_NS, MOST_NS = 20_000_000, 1_000_000_000

UNCLEAR = "unclear"


@dataclass(slots=True)
class _Hang:
    """A thread that does not come back: what shows it, since when, and until when it is known."""

    first: Look
    finding: Finding
    since_ns: int
    seen_ns: int
    due_ns: int = 0
    written_ns: int = 0
    over: bool = False


class Hangs:
    """Watches the loops of one target.

    Args:
        looker: of the target.
        stall_after_ns: how long a loop may be away. At the beginning and at the end of the
            recording what `qtrace inspect` takes is enough.
        say: takes what is to be told at once.
    """

    def __init__(self, looker: Looker, stall_after_ns: int, say: Callable[[str], None]) -> None:
        self._looker = looker
        self._in_flight = InFlight(looker)
        self._stall_after_ns = stall_after_ns
        self._say = say
        self._period_ns = min(max(stall_after_ns // 4, FEWEST_NS), MOST_NS)
        self._hangs: dict[int, _Hang] = {}
        self._watch: Watch | None = None
        self._before: Look | None = None
        # When all of that had been read: a look's own time is when it began.
        self._read_ns = 0
        self._at_start = True
        # Of each loop's thread: processor time and turns, and since when they are so; and those
        # that it had when it was seen in its loop.
        self._unmoved: dict[int, tuple[tuple[int, int], int]] = {}
        self._settled: dict[int, tuple[int, int]] = {}
        self._seen_ns = 0
        # Those that did not come back and were seen in their loops since the last look.
        self._back: set[int] = set()

    @property
    def told(self) -> set[int]:
        """The threads of which it was said that they do not come back."""
        return {tid for tid, hang in self._hangs.items() if hang.finding.kind == STUCK}

    def see(self, now_ns: int) -> bool:
        """Between two looks: whether a look is due at once.

        Raises NoSuchProcess when the target is gone.
        """
        watch = self._watch
        every = SEE_EVERY_NS if watch is not None else self._period_ns
        if now_ns - self._seen_ns < min(every, self._period_ns):
            return False
        self._seen_ns = now_ns
        if watch is None:
            return self._has_stopped_moving()
        watch.see()
        self._note_hangs(now_ns)
        suspects = {thread.tid for thread in watch.suspects}
        self._back = self._hangs.keys() - suspects
        if not suspects:
            self.close()
        return bool(self._back)

    def due_ns(self, look: Look) -> int | None:
        """When the next look is due, None when nobody is under suspicion."""
        if self._before is None or self._watch is None:
            return None
        return max(look.time_ns + APART_NS, self._ready_ns(self._before, self._watch))

    def rows(self, look: Look) -> list[Event]:
        """The rows of a look."""
        rows = self._came_back(look)
        before, watch = self._before, self._watch
        if before is None or watch is None:
            self._suspect(look)
        elif watch.suspects and self._is_ready(before, look, watch):
            proof = shown_by(before, look, watch)
            rows += self._shown(before, proof, watch.suspects, at_end=False)
            self.close()
            self._suspect(look)
        return rows

    def _ready_ns(self, before: Look, watch: Watch) -> int:
        """When a look can show that somebody does not come back."""
        ready = before.time_ns + APART_NS
        if self._at_start or self._hangs:
            return ready
        since = [self._since(before, thread.tid) for thread in watch.suspects]
        return max(ready, min(since, default=before.time_ns) + self._stall_after_ns)

    def _is_ready(self, before: Look, look: Look, watch: Watch) -> bool:
        if look.time_ns < self._ready_ns(before, watch):
            return False
        enough = look.time_ns - before.time_ns >= ENOUGH_NS
        return enough or not needs_longer(before, look, watch)

    def end(self, look: Look) -> tuple[list[Event], Look]:
        """The rows of the last look, or of further ones, as long as `qtrace inspect` would look;
        and the last one."""
        rows = self._came_back(look)
        before, watch = self._before, self._watch
        away = suspects(look)
        since = look
        if not away:
            proof = Proof([], [], look)
        elif before and watch and self._shows_enough(before, look, watch, away):
            since, proof = before, shown_by(before, look, watch)
        else:
            self._before, self._read_ns = look, time.monotonic_ns()
            proof = prove(self._looker, look)
        rows += self._shown(since, proof, away, at_end=True)
        rows += self._came_back(proof.look, at_end=True)
        self.close()
        return rows, proof.look

    def _shows_enough(self, before: Look, look: Look, watch: Watch, away: list[Thread]) -> bool:
        """Whether the watch that is under way shows what there is of all that are away."""
        watched = {thread.tid for thread in watch.suspects}
        lasted = look.time_ns - before.time_ns
        enough = lasted >= ENOUGH_NS or not needs_longer(before, look, watch)
        return watched == {t.tid for t in away} and lasted >= APART_NS and enough

    def forget(self) -> None:
        """The target is held: what moves cannot be told from what does not."""
        self.close()
        self._unmoved = {}

    def close(self) -> None:
        """End the watch."""
        if self._watch is not None:
            self._watch.close()
        self._watch = self._before = None
        self._at_start = False

    # When to look

    def _has_stopped_moving(self) -> bool:
        """Whether a loop's thread was given no processor for a while, and sleeps elsewhere than
        in its loop, where it was seen."""
        due = False
        for tid in self._settled.keys() | self._unmoved.keys():
            state = self._looker.source.state(tid)
            moves = (state.cpu_ns, state.turns)
            since = self._unmoved.get(tid)
            if not state.cpu_ns or since is None or since[0] != moves:
                # It may have moved until it was read.
                self._unmoved[tid] = (moves, time.monotonic_ns())
            elif self._settled.get(tid) != moves:
                due = True
        return due

    def _note_hangs(self, now_ns: int) -> None:
        """How long it is known to last of those who do not move."""
        assert self._watch is not None
        for tid, hang in self._hangs.items():
            sightings = self._watch.sightings.get(tid, [])
            if sightings and not hang.over and _same(hang.finding.thread, sightings[-1]):
                hang.seen_ns = now_ns

    def _since(self, before: Look, tid: int) -> int:
        """Since when a thread is known to be where a look found it: not before it was read."""
        thread = before.thread(tid)
        known = self._unmoved.get(tid)
        if thread is not None and known and known[0] == (thread.cpu_ns, thread.turns):
            return min(known[1], self._read_ns)
        return self._read_ns

    def _suspect(self, look: Look) -> None:
        """Watch those that a look did not find in their loops."""
        self._settled = {t.tid: (t.cpu_ns, t.turns) for t in _in_loops(look)}
        for thread in loop_threads(look):
            self._unmoved.setdefault(thread.tid, ((0, 0), look.time_ns))
        watch = Watch(self._looker, look)
        if watch.suspects:
            self._watch, self._before = watch, look
            self._read_ns = time.monotonic_ns()
            if any(waits_for_requests(look, finding) for finding in explain(look)):
                self._in_flight.see()
        else:
            watch.close()
            self._at_start = False

    # What is written

    def _shown(
        self, before: Look, proof: Proof, away: list[Thread], *, at_end: bool
    ) -> list[Event]:
        """The rows of what two looks show together."""
        rows = []
        if any(waits_for_requests(proof.look, finding) for finding in proof.findings):
            self._in_flight.see()
        findings = [self._in_flight.added_to(proof.look, finding) for finding in proof.findings]
        found = {finding.thread.tid: finding for finding in reversed(findings)}
        for thread in away:
            finding = found.get(thread.tid) or _unclear(proof, thread)
            hang = self._hangs.get(thread.tid)
            if finding is None:
                if hang is not None:
                    hang.over = True
                continue
            if hang is not None and self._is_part_of(hang, finding, proof.look, before):
                hang.seen_ns = proof.look.time_ns
                continue
            if hang is None or hang.over or not _goes_on(hang, finding, proof.look):
                # The new one begins with the earlier look.
                rows += self._is_over(hang, before, came_back=False) if hang else []
                since = self._since(before, thread.tid)
                asleep = asleep_ns(proof.look, finding.thread) if finding.kind == STUCK else 0
                since = min(since, proof.look.time_ns - asleep) if asleep else since
                hang = _Hang(before, finding, since, proof.look.time_ns)
                self._hangs[thread.tid] = hang
                rows.append(self._row(before, _at(before, finding), hang, looks=1))
                self._tell(hang, proof.look)
            elif at_end:
                self._tell(hang, proof.look)
            hang.seen_ns = proof.look.time_ns
            if at_end or proof.look.time_ns >= hang.due_ns:
                wait = proof.look.time_ns - hang.written_ns if hang.written_ns else 0
                hang.due_ns = proof.look.time_ns + max(APART_NS, 2 * wait)
                hang.written_ns = proof.look.time_ns
                rows.append(self._row(proof.look, finding, hang, looks=2, at_end=at_end))
        return rows

    def _row(
        self,
        look: Look,
        finding: Finding,
        hang: _Hang,
        *,
        looks: Literal[1, 2],
        at_end: bool = False,
    ) -> Event:
        detail: dict[str, Any] = {
            "kind": finding.kind,
            "waits_in": list(finding.waits_in),
            "command": finding.command,
            "since_ns": hang.since_ns,
            "looks": looks,
            "bql": look.bql_holder,
        }
        if looks == 2 and waits_for_requests(look, finding):
            detail["requests"] = self._in_flight.told()
        return blocked_row(look, finding, detail, at_end=at_end)

    def _is_part_of(self, hang: _Hang, finding: Finding, look: Look, before: Look) -> bool:
        """Whether a short wait is one of those that a callback, which goes on, is made of."""
        short = look.time_ns - self._since(before, finding.thread.tid) < self._stall_after_ns
        same = hang.finding.waits_in[-1:] == finding.waits_in[-1:]
        return short and same and hang.finding.kind == COMPUTES and finding.kind == STUCK

    def _tell(self, hang: _Hang, now: Look) -> None:
        # Of bottom halves that nobody can run their own rows tell, and their sentences.
        if hang.finding.kind in (STUCK, COMPUTES, UNCLEAR):
            text = hang.finding.sentence
            lasted = show(now.time_ns - hang.since_ns, "ns")
            told = hang.finding.kind != STUCK
            self._say(text if told else f"{text} (for {lasted} at least)")

    def _came_back(self, look: Look, *, at_end: bool = False) -> list[Event]:
        """The rows about those that were away and are seen in their loops; at the end of the
        recording also about those that went on and were not."""
        rows = []
        back = {thread.tid for thread in _in_loops(look)} | self._back
        there = {thread.tid for thread in look.threads}
        for tid, hang in list(self._hangs.items()):
            if tid in back or tid not in there or (at_end and hang.over):
                rows += self._is_over(hang, look, came_back=tid in back)
                del self._hangs[tid]
        self._back = set()
        return rows

    def _is_over(self, hang: _Hang, look: Look, *, came_back: bool) -> list[Event]:
        thread, lasted = hang.finding.thread, hang.seen_ns - hang.since_ns
        if came_back:
            name = thread.role if thread.role == "main" else thread.label
            self._say(f"{name} came back after at least {show(lasted, 'ns')}")
        role = cast(Role, thread.role)
        detail = {"blocked_ns": lasted, "came_back": came_back}
        return [Event(look.time_ns, "unblocked", thread.tid, thread.name, role, detail=detail)]


def _in_loops(look: Look) -> list[Thread]:
    return [thread for thread in loop_threads(look) if in_loop(look, thread)]


def _same(one: Thread, other: Thread) -> bool:
    """Whether a thread was given no processor between two sightings."""
    return bool(one.cpu_ns) and (one.cpu_ns, one.turns) == (other.cpu_ns, other.turns)


def _goes_on(hang: _Hang, finding: Finding, look: Look) -> bool:
    """Whether a finding is about the same wait, or about one and the same callback."""
    if hang.finding.kind in (COMPUTES, UNCLEAR) or finding.kind in (COMPUTES, UNCLEAR):
        same = hang.finding.kind == finding.kind
        return same and hang.finding.waits_in[-1:] == finding.waits_in[-1:]
    return stays(hang.first, look, finding.thread)


def _unclear(proof: Proof, thread: Thread) -> Finding | None:
    """That it is not known what a thread does that was not seen in its loop."""
    reasons = [reason for reason in proof.reasons if thread.label in reason]
    now = proof.look.thread(thread.tid)
    if not reasons or now is None or in_loop(proof.look, now):
        return None
    return Finding(UNCLEAR, "; ".join(reasons), Context(0, ""), (), now, (), None)


def _at(look: Look, finding: Finding) -> Finding:
    """What an earlier look showed of the same thread."""
    own = [one for one in explain(look) if one.thread.tid == finding.thread.tid]
    return next((one for one in own if one.kind == finding.kind), finding)
