"""The hits that wait: a thread empties the ring buffers, whatever the recorder is doing.

To unwind, to write a row, to take a look at the target: each may take longer than a flood of hits
takes to fill a ring buffer, most of all where others want the processors. So a thread of its own
only copies records into memory. That is bounded, for each ring buffer by itself: when it is
reached the records stay where they are, until the kernel finds no room and counts them as lost.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque

from qtrace.host import privileges
from qtrace.record.ebpf.bpf_program import Program
from qtrace.record.ebpf.record_ring import PAGE, RecordRing

# Hits of watched bottom halves: 9,000 of which little stack is needed, 420 with most.
HITS_BYTES = 16 << 20
# Steps of QMP commands, changes of jobs: 13,000.
STEPS_BYTES = 4 << 20
# What a copied record takes besides: the objects that hold it, and its place in the queue.
OVERHEAD = 160
# Between two looks of the thread, while hits come.
PERIOD_S = 0.01
# So many steps are worth waking somebody; of fewer the rows can wait.
MANY_STEPS = 1000

Raw = tuple[int, bytes, bool]
"""Time, record, and whether it is a step."""


class _Queue:
    """One ring buffer and what was copied out of it, in the order of the ring buffer."""

    def __init__(self, program: Program, name: str, room: int, is_step: bool) -> None:
        self.fd = program.maps[name]
        self.ring = RecordRing(self.fd, program.specs[name].max_entries // PAGE)
        self._room = room
        self._is_step = is_step
        self._bytes = 0
        self.waiting: deque[Raw] = deque()
        # Of all those up to then none is left in the ring buffer.
        self.until_ns = 0

    def read(self, now_ns: int) -> None:
        records, whole = self.ring.take(self._room - self._bytes)
        for record in records:
            self._bytes += len(record) + OVERHEAD
            time_ns = int.from_bytes(record[:8], "little")
            self.waiting.append((time_ns, record, self._is_step))
        if whole:
            self.until_ns = now_ns
        elif self.waiting:
            self.until_ns = self.waiting[-1][0]

    def pop(self) -> Raw:
        raw = self.waiting.popleft()
        self._bytes -= len(raw[1]) + OVERHEAD
        return raw


class Backlog:
    """The records of probes/watch.bpf.c, oldest first, from both ring buffers."""

    def __init__(self, program: Program) -> None:
        self._hits = _Queue(program, "events", HITS_BYTES, is_step=False)
        self._steps = _Queue(program, "steps", STEPS_BYTES, is_step=True)
        self._queues = (self._hits, self._steps)
        self._news = threading.Condition()
        self._stop = os.eventfd(0)
        self._thread = threading.Thread(target=self._run, name="qtrace-rings", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> None:
        """Until there is a hit, or many steps, at most so long."""
        with self._news:
            self._read()
            if timeout_s > 0 and not self._worth_it():
                self._news.wait(timeout_s)

    def take(self, most: int, until_ns: int) -> list[Raw]:
        """The oldest so many of those up to a time."""
        with self._news:
            until_ns = min(until_ns, self._read())
            taken: list[Raw] = []
            while len(taken) < most:
                heads = [queue for queue in self._queues if queue.waiting]
                queue = min(heads, key=lambda queue: queue.waiting[0][0], default=None)
                if queue is None or queue.waiting[0][0] > until_ns:
                    break
                taken.append(queue.pop())
        # CPUs reserve and take the time in two steps: neighbours may be swapped.
        return sorted(taken, key=lambda raw: raw[0])

    def oldest_ns(self) -> int | None:
        """When the oldest of those that wait was met; None when there is none."""
        with self._news:
            return min(
                (queue.waiting[0][0] for queue in self._queues if queue.waiting), default=None
            )

    def close(self) -> None:
        """End the thread; what waits can still be taken, and what is in the ring buffers."""
        if self._thread.is_alive():
            os.eventfd_write(self._stop, 1)
            self._thread.join()
            os.close(self._stop)

    def _read(self) -> int:
        """Copy what is there; up to when all is in the queues then. The lock is held."""
        now_ns = time.monotonic_ns()
        for queue in self._queues:
            queue.read(now_ns)
        return min(queue.until_ns for queue in self._queues)

    def _worth_it(self) -> bool:
        return bool(self._hits.waiting) or len(self._steps.waiting) >= MANY_STEPS

    def _run(self) -> None:
        # Whatever the recorder keeps: this only copies memory.
        privileges.give_up_here()
        poller = select.poll()
        for fd in (self._stop, *(queue.fd for queue in self._queues)):
            poller.register(fd, select.POLLIN)
        while self._stop not in (fd for fd, _events in poller.poll()):
            with self._news:
                self._read()
                if self._worth_it():
                    self._news.notify()
            # Those that follow closely come together.
            time.sleep(PERIOD_S)
