"""How long loops' threads were away from their loops, and who waited for the BQL, by sightings.

Nothing is probed: the threads are seen in /proc at a steady pace. Two sightings of a thread asleep
in its loop bound how long any callback in between took; a thread that sat unmoved in one wait for
the BQL between two sightings waited for at least as long.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from qtrace.host.quotas import HeldBack, Quotas
from qtrace.inspection.looker import Looker
from qtrace.machine.thread_files import ThreadFiles
from qtrace.qemu.aio.findings import loop_threads
from qtrace.qemu.aio.model import Look, Thread
from qtrace.qemu.aio.waits import in_loop, is_unmoved, waits_for_big_lock

# vCPU threads are many: they are seen every so many times that the loops are.
VCPUS_EVERY = 5


@dataclass(slots=True)
class Loop:
    """What was seen of a loop's thread.

    Attributes:
        seen, at_home: how often it was seen, and how often of that asleep in its loop.
        longest_ns: the longest time between two sightings in its loop.
        home_ns: when it was last seen there; at first when the first look was taken.
    """

    thread: Thread
    home_ns: int
    seen: int = 0
    at_home: int = 0
    longest_ns: int = 0

    def saw(self, now_ns: int, home: bool) -> None:
        self.seen += 1
        self.longest_ns = max(self.longest_ns, now_ns - self.home_ns)
        if home:
            self.at_home += 1
            self.home_ns = now_ns


@dataclass(slots=True)
class LockWait:
    """The longest wait for the BQL: that of ``thread``, for ``at_least_ns``."""

    thread: Thread | None = None
    at_least_ns: int = 0


@dataclass(slots=True)
class Processors:
    """Of some threads together, in nanoseconds: the time that they ran, and the time that they
    were ready to and had to wait for a processor of the host."""

    threads: int
    ran_ns: int
    waited_ns: int


@dataclass(slots=True)
class _Waiter:
    thread: Thread
    since_ns: int


@dataclass
class Sightings:
    """Sees the threads of one QEMU; ``see`` at a steady pace, then ask for the rest.

    Attributes:
        loops: by tid, the main loop first.
        lock_wait: the longest wait for the BQL.
        held_back: what the quotas of its threads' cgroups did, the worst first; when it has ended.
    """

    looker: Looker
    first: Look
    loops: dict[int, Loop] = field(init=False)
    lock_wait: LockWait = field(default_factory=LockWait)
    held_back: list[HeldBack] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._began_ns = self._ended_ns = self.first.time_ns
        self.loops = {t.tid: Loop(t, self._began_ns) for t in loop_threads(self.first)}
        self._vcpus = [thread for thread in self.first.threads if thread.role == "vcpu"]
        self._waiters: dict[int, _Waiter] = {}
        self._count = 0
        self._files = ThreadFiles(self.looker.source.pid)
        self._times = {tid: self._scheduled(tid) for tid in self._counted()}
        self._last_times = dict(self._times)
        self._quotas = Quotas(self._files.read(tid, "cgroup") for tid in self._counted())

    def see(self) -> None:
        """See each thread once."""
        for tid, loop in self.loops.items():
            thread = loop.thread
            now = self.looker.thread(tid, thread.name, thread.role == "iothread")
            loop.saw(time.monotonic_ns(), in_loop(self.first, now))
            self._note_wait(now)
        if self._count % VCPUS_EVERY == 0:
            for vcpu in self._vcpus:
                # The stack of one that is not in futex(2) is not asked for: it waits for no lock.
                if self.looker.source.state(vcpu.tid).blocked_in == "futex":
                    self._note_wait(self.looker.thread(vcpu.tid, vcpu.name))
                else:
                    self._waiters.pop(vcpu.tid, None)
        self._count += 1

    def ended(self) -> Sightings:
        """No more is seen: the numbers are those up to now. Itself."""
        self._ended_ns = time.monotonic_ns()
        self._last_times = {tid: self._scheduled(tid) for tid in self._counted()}
        self.held_back = self._quotas.held_back()
        return self

    def processors(self, role: str) -> Processors | None:
        """What the threads of a role got from beginning to end; None where the kernel does not
        tell, or there are none."""
        own = [tid for tid, thread in self._counted().items() if thread.role == role]
        pairs = [(self._times[tid], self._last_times.get(tid)) for tid in own]
        known = [(one, two) for one, two in pairs if one is not None and two is not None]
        if not known or len(known) < len(own):
            return None
        ran, waited = (sum(two[n] - one[n] for one, two in known) for n in (0, 1))
        return Processors(len(own), ran, waited)

    def ran_ns(self, tid: int) -> int:
        """For how long a thread had a processor, from beginning to end; 0 where that is not
        known."""
        one, two = self._times.get(tid), self._last_times.get(tid)
        return two[0] - one[0] if one and two else 0

    def waited_ns(self, tid: int) -> int:
        """For how long a thread was ready to run and had to wait for a processor of the host, from
        beginning to end; 0 where that is not known."""
        one, two = self._times.get(tid), self._last_times.get(tid)
        return two[1] - one[1] if one and two else 0

    def crowding(self) -> float:
        """The share of the time so far for which the thread that fared worst was ready to run and
        had no processor of the host."""
        lasted_ns = max(time.monotonic_ns() - self._began_ns, 1)
        pairs = ((one, self._scheduled(tid)) for tid, one in self._times.items())
        waited = [two[1] - one[1] for one, two in pairs if one and two]
        return min(max(waited, default=0) / lasted_ns, 1.0)

    @property
    def lasted_ns(self) -> int:
        return self._ended_ns - self._began_ns

    def away_ns(self, tid: int) -> int:
        """For how long a loop's thread has not been seen in its loop by now."""
        return time.monotonic_ns() - self.loops[tid].home_ns if tid in self.loops else 0

    def _note_wait(self, now: Thread) -> None:
        if not waits_for_big_lock(self.first, now):
            self._waiters.pop(now.tid, None)
            return
        known = self._waiters.get(now.tid)
        if known is None or not is_unmoved(known.thread, now):
            self._waiters[now.tid] = _Waiter(now, time.monotonic_ns())
            return
        lasted = time.monotonic_ns() - known.since_ns
        if lasted > self.lock_wait.at_least_ns:
            self.lock_wait = LockWait(now, lasted)

    def _counted(self) -> dict[int, Thread]:
        return {t.tid: t for t in [*(loop.thread for loop in self.loops.values()), *self._vcpus]}

    def _scheduled(self, tid: int) -> tuple[int, int] | None:
        """Nanoseconds that a thread ran, and that it waited for a processor, so far."""
        fields = self._files.read(tid, "schedstat").split()
        return (int(fields[0]), int(fields[1])) if len(fields) == 3 else None
