"""QEMU's bottom halves, one step at a time: util/async.c in its plainest form.

Slow and obvious on purpose: what the analysis does with whole columns is compared with this. It
writes the rows that `--all` would, and keeps what really happened beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qtrace.trace.schema import PARTIAL, Event

PENDING, SCHEDULED, DELETED, ONESHOT = 1, 2, 4, 8
CONTEXTS = {"main": 0x1000, "iohandler": 0x2000, "iothread:io": 0x3000}
MAIN, VCPU, IOTHREAD, WORKER = 100, 101, 102, 200
ROLES = {MAIN: "main", VCPU: "vcpu", IOTHREAD: "iothread"}
# The frames that show who dispatched, leaf last.
LOOP = ("aio_dispatch+0x53", "aio_bh_poll+0xc6")
POLL = ("a_caller+0x1", "aio_poll+0x124", "aio_bh_poll+0xc6")


@dataclass
class Half:
    """A QEMUBH."""

    bh: int
    name: str
    context: str
    opaque: int
    flags: int = 0
    life: Life | None = None


@dataclass
class Life:
    """An instance: the events (by their place) that began and ended it, and how it ended."""

    half: str
    began: int
    ended: int | None = None
    end: str = ""
    verdict: str = "pending"
    coalesced: list[int] = field(default_factory=list)
    # The runs (their events' places) that its schedule and its run lay in, outermost first.
    scheduled_in: list[int] = field(default_factory=list)
    ran_in: list[int] = field(default_factory=list)
    returned: int | None = None


@dataclass
class Poll:
    """An active aio_bh_poll(), and the bottom half whose callback it is in."""

    context: str
    nested: bool
    running: Half | None = None
    life: Life | None = None
    run: int = -1


class Qemu:
    """Contexts, bottom halves and threads; ``events`` are what `--all` writes of them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.lives: list[Life] = []
        self.lists: dict[str, list[Half]] = {context: [] for context in CONTEXTS}
        self.slices: dict[str, list[list[Half]]] = {context: [] for context in CONTEXTS}
        self.stacks: dict[int, list[Poll]] = {}
        self.free = [0x500, 0x540, 0x580, 0x5C0]
        self.heap = 0x600

    def runs_around(self, tid: int) -> list[int]:
        """The runs that a thread is in, outermost first."""
        return [poll.run for poll in self.stacks.get(tid, []) if poll.running]

    def new(self, name: str, context: str, opaque: int) -> Half:
        """aio_bh_new(): malloc() hands out what was freed last."""
        if not self.free:
            self.free.append(self.heap)
            self.heap += 0x40
        return Half(self.free.pop(), name, context, opaque)

    def schedule(self, tid: int, half: Half, oneshot: bool = False) -> None:
        """qemu_bh_schedule(), or aio_bh_schedule_oneshot() of a new one."""
        old = half.flags
        state = "inserted" if not old & PENDING else "coalesced" if old & SCHEDULED else "requeued"
        half.flags |= PENDING | SCHEDULED | (ONESHOT if oneshot else 0)
        place = self._note(tid, "schedule", half, {"enqueue": state}, (PARTIAL, "someone+0x1"))
        if state == "inserted":
            self.lists[half.context].insert(0, half)
        if state == "coalesced":
            assert half.life
            half.life.coalesced.append(place)
        else:
            half.life = Life(half.name, place, scheduled_in=self.runs_around(tid))
            self.lives.append(half.life)

    def cancel(self, tid: int, half: Half) -> None:
        """qemu_bh_cancel(): it stays in the list."""
        place = self._note(tid, "cancel", half)
        self._end(half, place, "cancel", "cancelled")
        half.flags &= ~SCHEDULED

    def delete(self, tid: int, half: Half) -> None:
        """qemu_bh_delete(): it is freed when its list is polled."""
        place = self._note(tid, "delete", half)
        self._end(half, place, "delete", "deleted")
        if not half.flags & PENDING:
            self.lists[half.context].insert(0, half)
        half.flags = (half.flags | PENDING | DELETED) & ~SCHEDULED

    def poll(self, tid: int, context: str, nested: bool) -> None:
        """The beginning of aio_bh_poll(): what is in the list becomes the last slice."""
        self.slices[context].append(self.lists[context])
        self.lists[context] = []
        self.stacks.setdefault(tid, []).append(Poll(context, nested))

    def step(self, tid: int) -> None:
        """The innermost poll of a thread goes on: its callback returns, or the next one is called,
        of the oldest slice, whoever took that."""
        poll = self.stacks[tid][-1]
        if poll.running:
            self._return(tid, poll)
        slices = self.slices[poll.context]
        while slices and not slices[0]:
            slices.pop(0)
        if not slices:
            self.stacks[tid].pop()
            return
        half = slices[0].pop(0)
        flags, half.flags = half.flags, half.flags & ~(PENDING | SCHEDULED)
        if flags & (SCHEDULED | DELETED) == SCHEDULED:
            self._call(tid, poll, half)
        elif flags & (DELETED | ONESHOT):
            self.free.append(half.bh)

    def _call(self, tid: int, poll: Poll, half: Half) -> None:
        around = self.runs_around(tid)
        frames = POLL if poll.nested or ROLES.get(tid) != "main" else LOOP
        depth = {"depth": len(around)}
        place = self._note(tid, "run", half, depth, (PARTIAL, *frames, half.name))
        assert half.life
        half.life.ran_in = around
        poll.life = half.life
        self._end(half, place, "run", self._verdict(tid, poll))
        poll.running, poll.run = half, place

    def _return(self, tid: int, poll: Poll) -> None:
        assert poll.running
        assert poll.life
        poll.life.returned = self._note(tid, "return", poll.running)
        if poll.running.flags & ONESHOT:
            self.free.append(poll.running.bh)
        poll.running = None

    @staticmethod
    def _verdict(tid: int, poll: Poll) -> str:
        role = ROLES.get(tid)
        if role == "main":
            return "nested-poll" if poll.nested else "main-loop"
        if role == "vcpu":
            return "vcpu-poll"
        own = role == "iothread" and poll.context.startswith("iothread")
        return "iothread" if own else "foreign-poll"

    def _end(self, half: Half, place: int, end: str, verdict: str) -> None:
        if (half.life and half.flags & SCHEDULED) or end == "run":
            assert half.life
            half.life.ended, half.life.end, half.life.verdict = place, end, verdict
            half.life = None

    def _note(
        self, tid: int, kind: Any, half: Half, detail: dict[str, Any] | None = None,
        stack: tuple[str, ...] = (),
    ) -> int:  # fmt: skip
        role: Any = ROLES.get(tid, "worker")
        event = Event(
            10 * len(self.events) + 10, kind, tid, role, role, half.name, half.context,
            CONTEXTS[half.context], half.bh, 0x40 + sum(half.name.encode()), half.opaque,
            stack, detail or {},
        )  # fmt: skip
        self.events.append(event)
        return len(self.events) - 1
