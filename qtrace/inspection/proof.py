"""Whether what a look shows stays so: looks and sightings until it is proven, or is over.

Nothing is stopped. A loop's thread that is seen in its loop once is sound; one that is not is
looked at for half a second, and for two where somebody moves whom it waits for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from qtrace.inspection.looker import Looker
from qtrace.inspection.outside import bystanders, with_outside
from qtrace.process.running_stacks import RunningThreads
from qtrace.qemu.aio.findings import (
    COMPUTES,
    MOVING_NS,
    Finding,
    computing,
    confirm,
    explain,
    goes_round,
    is_in_no_callback,
    is_proven,
    keeping_big_lock,
    loop_threads,
    may_come_and_go,
    stays,
    suspects,
)
from qtrace.qemu.aio.inconclusive import still_unclear, unclear
from qtrace.qemu.aio.model import Look, Thread
from qtrace.qemu.aio.waits import chain, has_loop, in_loop, is_polling, is_unmoved

# A wait that is still the same after this long is told as a finding.
APART_NS = 500_000_000
# Between two looks the suspects are seen so often; a sighting takes some 0.1 ms.
EVERY_NS = 20_000_000
# So many stacks of a thread that is not in its loop, over so long, show what it does instead.
SIGHTINGS, COMPUTING_NS = 5, APART_NS // 2
# Sitting in one wait for so long is more than a step of a callback that goes on.
RESTED_NS = APART_NS // 5
# In so many places at least, over two seconds, who moves was seen, and never without the BQL.
KEPT_SIGHTINGS = 20
# Who came to rest in a wait only after the first look is looked at anew, so often at most.
TRIES = 3
# After the last moment at which it counts, for the look itself.
ENOUGH_NS = MOVING_NS + APART_NS


@dataclass(frozen=True)
class Proof:
    """What looks have shown together.

    Attributes:
        findings: proven, or shown by one look at a process that is held.
        reasons: why it cannot be told whether there is (another) one.
        look: the last one.
    """

    findings: list[Finding]
    reasons: list[str]
    look: Look


class Watch:
    """Sees suspects (loops' threads that were not in their loops, who keeps the BQL), and those
    that they wait for, again and again: where they sleep, and by the kernel's clock where they
    run."""

    def __init__(self, looker: Looker, first: Look) -> None:
        self._looker = looker
        self._first = first
        self.suspects = suspects(first)
        self._loops = {thread.tid for thread in loop_threads(first)}
        holders = [other for thread in self.suspects for other in chain(first, thread)]
        self._seen = {thread.tid: thread for thread in (*self.suspects, *holders)}
        self.sightings: dict[int, list[Thread]] = {tid: [] for tid in self._seen}
        self._times: dict[int, list[int]] = {tid: [] for tid in self._seen}
        self._reads: dict[int, list[int | None]] = {thread.tid: [] for thread in self.away}
        self._running = RunningThreads(self._seen)
        # The samples of each thread that have been unwound: once, while its memory is fresh.
        self._ran: dict[int, list[tuple[int, Thread]]] = {tid: [] for tid in self._seen}

    @property
    def away(self) -> list[Thread]:
        """The suspects that have a loop to come back to."""
        return [thread for thread in self.suspects if thread.tid in self._loops]

    @property
    def keepers(self) -> list[Thread]:
        """Those that have kept the BQL so far."""
        return [thread for thread in self.suspects if thread.tid not in self._loops]

    def until(self, at_ns: int) -> None:
        """Go on for a while; ends early when no suspect is left."""
        while self.suspects and (left := at_ns - time.monotonic_ns()) > 0:
            time.sleep(min(left, EVERY_NS) / 1e9)
            self.see()

    def see(self) -> None:
        """See each of them once; who is in its loop, or has moved on, is no suspect any more."""
        for tid, thread in self._seen.items():
            now = self._looker.thread(tid, thread.name, thread.role == "iothread")
            self.sightings[tid].append(now)
            self._times[tid].append(time.monotonic_ns())
        for tid, reads in self._reads.items():
            reads.append(self._looker.reads(tid))
        self.suspects = [thread for thread in self.suspects if self._is_one(thread)]

    def comes_round(self, thread: Thread) -> bool:
        """Whether it shows that a loop's thread has come back to its loop in between: it was seen
        at different places of it; or, while in all sightings the loop itself waits for the BQL,
        as that of a busy guest's main thread does, it has read something, as whoever was notified
        does (aio_notify_accept() in util/async.c)."""
        stacks = self.stacks(thread)
        reads = self._reads.get(thread.tid, [])
        has_read = len({None, *reads}) > 2
        return goes_round(stacks) or (has_read and is_in_no_callback(stacks))

    def _is_one(self, thread: Thread) -> bool:
        """Whether a suspect still is one: who keeps the BQL, as long as nobody else was seen to
        have it, or it to have it not."""
        last = self.sightings[thread.tid][-1]
        if thread.tid in self._loops:
            return not in_loop(self._first, last)
        return not is_polling(last) and self._looker.big_lock_holder() == thread.tid

    def stacks(self, thread: Thread) -> list[Thread]:
        """The sightings of a thread that show its whole stack, the earliest first."""
        return [one for _time_ns, one in self._timed_stacks(thread)]

    def _timed_stacks(self, thread: Thread) -> list[tuple[int, Thread]]:
        tid = thread.tid
        seen = zip(self._times.get(tid, ()), self.sightings.get(tid, ()), strict=True)
        ran = self._ran.get(tid, [])
        for sample in self._running.take().get(tid, [])[len(ran) :]:
            ran.append((sample.time_ns, self._looker.sampled(thread, sample)))
        found = [(time_ns, one) for time_ns, one in [*seen, *ran] if one.whole]
        return sorted(found, key=lambda timed: timed[0])

    def computing(self, now: Look, thread: Thread) -> Finding | None:
        """As ``why.computing``; None while too little has been seen."""
        timed = self._timed_stacks(thread)
        if len(timed) < SIGHTINGS or (over_ns := timed[-1][0] - timed[0][0]) < COMPUTING_NS:
            return None
        return computing(now, thread, [one for _time_ns, one in timed], over_ns)

    def keeping(self, now: Look, thread: Thread) -> Finding | None:
        """As ``findings.keeping_big_lock``; None while too little has been seen."""
        stacks, times = self.stacks(thread), self._times[thread.tid]
        over_ns = times[-1] - self._first.time_ns if times else 0
        # On a crowded host one that waits for a processor is the same in many sightings.
        asleep = {(one.cpu_ns, one.turns) for one in self.sightings[thread.tid] if one.blocked_in}
        if len(asleep) + len(self._ran[thread.tid]) < KEPT_SIGHTINGS or over_ns < MOVING_NS:
            return None
        return keeping_big_lock(now.thread(thread.tid) or thread, stacks, len(times), over_ns)

    def has_come_to_rest(self, now: Look, thread: Thread) -> bool:
        """Whether a thread has moved since the first look, but not for the last ``RESTED_NS``, and
        sleeps elsewhere than in its loop."""
        earlier, last = self._first.thread(thread.tid), now.thread(thread.tid)
        if earlier is None or last is None or not last.blocked_in or in_loop(now, last):
            return False
        seen = zip(self._times[thread.tid], self.sightings[thread.tid], strict=True)
        since = [time_ns for time_ns, one in seen if is_unmoved(one, last)]
        rested = bool(since) and now.time_ns - since[0] >= RESTED_NS
        return rested and not is_unmoved(earlier, last)

    def with_outside(self, look: Look, tids: Iterable[int]) -> Look:
        return with_outside(self._looker, look, tids)

    def may_sample(self, thread: Thread) -> bool:
        return thread.tid in self._running.tids

    def close(self) -> None:
        self._running.close()


def prove(looker: Looker, first: Look) -> Proof:
    """Look until it is known what is in the way. Raises NoSuchProcess."""
    for _ in range(TRIES):
        if first.stopped:
            return _of_held(first)
        findings, reasons = explain(first), unclear(first)
        watch = Watch(looker, first)
        try:
            if not (findings or reasons or watch.suspects):
                return Proof([], [], first)
            proof = _watched(looker, first, watch)
            if not _has_come_to_rest(proof, watch):
                return proof
            first = proof.look
        finally:
            watch.close()
    return proof


def _has_come_to_rest(proof: Proof, watch: Watch) -> bool:
    """Whether a suspect that is not told as stuck sits in a wait that it came to after the first
    look: that one says nothing of it then. (Who is let go by a debugger has to get a processor
    first to sleep on; what was slow may be dead now.)"""
    told = {finding.thread.tid for finding in proof.findings if finding.kind != COMPUTES}
    return any(
        thread.tid not in told and watch.has_come_to_rest(proof.look, thread)
        for thread in watch.suspects
    )


def _of_held(look: Look) -> Proof:
    return Proof(explain(look), [_why_held(look), *unclear(look)], look)


def _why_held(look: Look) -> str:
    return f"the process is {look.held}: that nothing moves shows nothing"


def _watched(looker: Looker, before: Look, watch: Watch) -> Proof:
    watch.see()
    watch.until(before.time_ns + APART_NS)
    now = looker.look()
    while not now.stopped and now.time_ns - before.time_ns < ENOUGH_NS:
        if not needs_longer(before, now, watch):
            break
        watch.until(time.monotonic_ns() + APART_NS)
        now = looker.look()
    if now.stopped:
        return _of_held(now)
    return shown_by(before, now, watch)


def shown_by(before: Look, now: Look, watch: Watch) -> Proof:
    """What two looks and the sightings between them show."""
    shown = _with_causes(now, watch)
    findings = confirm(before, shown, between=watch.sightings)
    reasons = still_unclear(before, now)
    told = {finding.thread.tid for finding in findings}
    for thread in watch.away:
        last = now.thread(thread.tid) or thread
        if thread.tid in told or not has_loop(now, last) or in_loop(now, last):
            continue
        found = watch.computing(now, thread)
        if found is not None:
            findings.append(found)
        elif not watch.comes_round(thread):
            reasons.append(_why_not_seen(thread, watch, now.time_ns - before.time_ns))
    for thread in watch.keepers:
        if thread.tid in told:
            continue
        found = watch.keeping(shown, thread)
        if found is not None:
            findings.append(found)
        elif not may_come_and_go(watch.stacks(thread)):
            reasons.append(_why_not_known(thread, watch, now.time_ns - before.time_ns))
    return Proof(findings, reasons, shown)


def needs_longer(before: Look, now: Look, watch: Watch) -> bool:
    """Whether something stays as it was, or is not seen yet, and only more time can tell."""
    told = set()
    for finding in explain(now):
        thread = finding.thread
        if not stays(before, now, thread, watch.sightings.get(thread.tid, ())):
            continue
        if not is_proven(before, now, thread):
            return True
        told.add(thread.tid)
    if any(keeper.tid not in told for keeper in watch.keepers):
        return True
    return any(
        thread.tid not in told
        and has_loop(now, now.thread(thread.tid) or thread)
        and watch.computing(now, thread) is None
        and not watch.comes_round(thread)
        for thread in watch.away
    )


def _with_causes(look: Look, watch: Watch) -> Look:
    """The look, with a stack that was seen of each that runs and others wait for, or will, and
    with what all of them wait for outside of the process."""
    wanted = {t.tid for s in watch.suspects for t in chain(look, look.thread(s.tid) or s)}
    wanted |= {keeper.tid for keeper in watch.keepers}
    threads = []
    for thread in look.threads:
        stacks = watch.stacks(thread) if thread.tid in wanted and not thread.frames else []
        threads.append(replace(stacks[0], cpu_ns=thread.cpu_ns) if stacks else thread)
    shown = replace(look, threads=tuple(threads))
    ours = [shown.thread(suspect.tid) or suspect for suspect in watch.suspects]
    polls = any(is_polling(one) for suspect in ours for one in (suspect, *chain(shown, suspect)))
    told = wanted | {suspect.tid for suspect in ours} | (bystanders(shown) if polls else set())
    return watch.with_outside(shown, told)


def _why_not_seen(thread: Thread, watch: Watch, over_ns: int) -> str:
    text = f"{thread.label} was not seen in its loop for {over_ns / 1e9:.1f} s"
    return f"{text}, and {_why_too_little(thread, watch, 'what it does instead')}"


def _why_not_known(thread: Thread, watch: Watch, over_ns: int) -> str:
    text = f"{thread.label} was never seen without the BQL for {over_ns / 1e9:.1f} s"
    return f"{text}, and {_why_too_little(thread, watch, 'what it does')}"


def _why_too_little(thread: Thread, watch: Watch, what: str) -> str:
    if watch.may_sample(thread):
        return f"too little of {what}"
    return f"{what} takes CAP_PERFMON to see"


def proven_again(
    looker: Looker, looks: Sequence[Look], now: Look
) -> tuple[list[Finding], list[str]]:
    """Of looks that somebody takes at a steady pace: what they show together with the newest.

    Args:
        looks: earlier ones, the oldest first.
    """
    if now.stopped:
        return [], [_why_held(now), *unclear(now)]
    away = [finding.thread for finding in explain(now)]
    apart = [look for look in looks if now.time_ns - look.time_ns >= APART_NS]
    found = _confirmed(apart, looks, now) if away else []
    if found:
        # A busy guest is away in nearly each look, and what it waits for outside is dear to find:
        # that is told of what is proven.
        told = {t.tid for one in away for t in (one, *chain(now, one))}
        found = _confirmed(apart, looks, with_outside(looker, now, told))
    return found, still_unclear(apart[-1], now) if apart else []


def _confirmed(apart: Sequence[Look], looks: Sequence[Look], now: Look) -> list[Finding]:
    """What the newest look and one of those ``apart`` show: the oldest that does tells most."""
    found: dict[tuple[str, int, int], Finding] = {}
    for before in apart:
        between = [look for look in looks if look.time_ns > before.time_ns]
        for finding in confirm(before, now, between=_sightings(between)):
            found.setdefault((finding.kind, finding.thread.tid, finding.context.address), finding)
    return list(found.values())


def _sightings(looks: Sequence[Look]) -> dict[int, list[Thread]]:
    found: dict[int, list[Thread]] = {}
    for look in looks:
        for thread in loop_threads(look):
            found.setdefault(thread.tid, []).append(thread)
    return found
