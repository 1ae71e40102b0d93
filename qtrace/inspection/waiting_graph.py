"""Who waits for whom, of threads, bottom halves, jobs, requests and those outside: one graph.

What it says each time is what findings rest on: a lock's holder, a context's thread, the other end
of a descriptor. What does not show is no edge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qtrace.inspection.answer import Answer
from qtrace.inspection.request_look import RequestLook
from qtrace.inspection.whom import Whom
from qtrace.qemu.aio.findings import Finding
from qtrace.qemu.aio.model import Look, Thread
from qtrace.qemu.aio.waits import in_loop, named_frames, wait_for, waiting
from qtrace.qemu.block.drains import drainer
from qtrace.qemu.block.requests import InFlight

THREAD, HALVES, JOB, REQUEST, OUTSIDE = "thread", "bottom halves", "job", "request", "outside"
# Bottom halves that are named together.
NAMED = 4


@dataclass(frozen=True)
class Party:
    """Somebody who waits, or is waited for.

    Attributes:
        key: its own, as ``thread 1234``.
        kind: what it is.
        label, does: in words.
        found: a finding is about it.
    """

    key: str
    kind: str
    label: str
    does: str
    found: bool = False


@dataclass(frozen=True)
class Edge:
    """``who`` waits for ``whom`` (their keys), and for ``what`` of it in words."""

    who: str
    whom: str
    what: str


@dataclass(frozen=True)
class WaitingGraph:
    """Those that wait for one another; who neither waits nor is waited for is not in it."""

    parties: tuple[Party, ...]
    edges: tuple[Edge, ...]


def waiting_graph(look: Look, answer: Answer) -> WaitingGraph:
    """Of one look and what was found."""
    made = _Making(look, answer)
    edges = tuple(dict.fromkeys(made.edges()))
    keys = {key for edge in edges for key in (edge.who, edge.whom)}
    keys |= {party.key for party in made.parties.values() if party.found}
    return WaitingGraph(tuple(p for p in made.parties.values() if p.key in keys), edges)


class _Making:
    def __init__(self, look: Look, answer: Answer) -> None:
        self._look = look
        self._answer = answer
        self._requests: RequestLook | None = answer.requests
        findings = [one for one in answer.findings if isinstance(one, Finding)]
        self._found = {one.thread.tid for one in findings}
        # It was asked for of those that findings are about.
        self._beyond = {one.thread.tid: one.thread.outside for one in findings}
        self.parties: dict[str, Party] = {}
        for thread in look.threads:
            self._thread(thread)

    def edges(self) -> Iterator[Edge]:
        for thread in self._look.threads:
            yield from self._of_thread(thread)
        yield from self._of_halves()
        if self._requests is not None:
            yield from self._of_requests(self._requests)

    def _add(self, party: Party) -> str:
        self.parties.setdefault(party.key, party)
        return party.key

    def _thread(self, thread: Thread) -> str:
        frames = named_frames(thread)
        does = thread.blocked_in or "runs"
        does += f" in {' < '.join(frames[:3])}" if frames else ""
        label = f"{thread.label}, {thread.role}" if thread.role != "main" else thread.label
        return self._add(
            Party(f"thread {thread.tid}", THREAD, label, does, thread.tid in self._found)
        )

    def _of_thread(self, thread: Thread) -> Iterator[Edge]:
        own = f"thread {thread.tid}"
        wait = wait_for(self._look, thread)
        for other in wait.whom:
            if other.tid != thread.tid:
                yield Edge(own, f"thread {other.tid}", wait.what)
        if outside := thread.outside or self._beyond.get(thread.tid):
            yield Edge(own, self._outside(outside), "")

    def _of_halves(self) -> Iterator[Edge]:
        """Pending bottom halves whose thread is not in its loop."""
        for context in self._look.contexts:
            runner = self._look.thread(context.tid)
            halves = waiting(self._look, context)
            if not halves or runner is None or in_loop(self._look, runner):
                continue
            names = [half.label for half in halves]
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            text = ", ".join(names[:NAMED]) + more
            found = any(
                isinstance(one, Finding) and one.context == context and one.bottom_halves
                for one in self._answer.findings
            )
            key = self._add(
                Party(
                    f"pending in {context.label}",
                    HALVES,
                    text,
                    f"pending in {context.label}",
                    found,
                )
            )
            yield Edge(key, f"thread {runner.tid}", "to run them")

    def _of_requests(self, found: RequestLook) -> Iterator[Edge]:
        stuck = {
            request.key
            for finding in self._answer.findings
            if not isinstance(finding, Finding)
            for request in finding.requests
        }
        by_co: dict[int, str] = {}
        for number, one in enumerate([*found.causes, *found.behind]):
            key = self._add(
                Party(f"request {number}", REQUEST, one.where, one.wait.text, one.key in stuck)
            )
            if one.co is not None:
                by_co[one.co.address] = key
            if one.job:
                job = self._add(
                    Party(f"job {one.job}", JOB, f"job {one.job}", "waits for its requests")
                )
                yield Edge(job, key, "")
            yield from self._of_request(key, one, found)
        for one in (*found.causes, *found.behind):
            for holder in one.co.holders if one.co is not None else ():
                if one.co is not None and holder in by_co:
                    yield Edge(by_co[one.co.address], by_co[holder], "its lock")
        for number, below in self._answer.below.items():
            finding = self._answer.findings[number]
            who = drainer(self._look, finding.thread) if isinstance(finding, Finding) else None
            for place, one in enumerate(found.causes):
                if who is not None and found.sentence(one) in below.lines:
                    yield Edge(f"thread {who.tid}", f"request {place}", below.what)

    def _of_request(self, key: str, one: InFlight, found: RequestLook) -> Iterator[Edge]:
        whom = found.whom.get(one.key)
        if whom is not None:
            if whom.tid:
                yield Edge(key, f"thread {whom.tid}", "its work")
            yield from self._of_outsiders(key, whom)

    def _of_outsiders(self, key: str, whom: Whom) -> Iterator[Edge]:
        """A server may be a client in turn."""
        for peer in whom.peers:
            other = self._outside(peer.text)
            yield Edge(key, other, "")
            if whom.beyond is not None:
                yield from self._of_outsiders(other, whom.beyond)

    def _outside(self, text: str) -> str:
        return self._add(Party(f"outside: {text}", OUTSIDE, text, "outside of QEMU"))
