"""Which programs start, as the kernel tells of each exec.

On a busy host each thread that has to be woken waits for a processor first, and a QEMU that starts
is to be armed before it runs a bottom half. So whoever hears of one goes on with it, and another
thread hears on.
"""

from __future__ import annotations

import _thread
import os
import select
import threading
from collections.abc import Callable

from qtrace.errors import RecorderUnavailable
from qtrace.host.bpf_syscall import attach_raw_tracepoint
from qtrace.record.ebpf.bpf_program import load_exec
from qtrace.record.ebpf.record_ring import RecordRing

EXEC = "sched_process_exec"
PAGES = 4
# All that wait: some 400.
MOST_BYTES = 1 << 20
Work = Callable[[], None]


class ExecNotices:
    """From now on until it is closed.

    Args:
        started: is told the pid, the name, and when, of each program that starts and may be QEMU's.
            What it returns is done next, by the same thread, for as long as it may take.

    Raises RecorderUnavailable.
    """

    def __init__(self, started: Callable[[int, str, int], Work | None]) -> None:
        self._started = started
        self._program = load_exec(PAGES)
        try:
            self._link = attach_raw_tracepoint(self._program.functions["on_exec"], EXEC)
        except OSError as error:
            raise RecorderUnavailable(
                f"the kernel tells of no programs that start: {error.strerror}",
                "qtrace doctor says what is missing",
            ) from error
        self._layout = self._program.layouts["execs"]
        self._ring = RecordRing(self._program.maps["execs"], PAGES)
        self._ends, self._end = os.pipe()
        self._hears = threading.Lock()
        self._closed = False
        _thread.start_new_thread(self._hear, ())

    def close(self) -> None:
        """Whoever has begun with a program goes on with it."""
        self._closed = True
        os.close(self._end)
        with self._hears:
            os.close(self._ends)
            os.close(self._link)
            self._program.close()

    def _hear(self) -> None:
        work: list[Work] = []
        with self._hears:
            if self._closed:
                return
            poller = select.poll()
            poller.register(self._program.maps["execs"], select.POLLIN)
            poller.register(self._ends, select.POLLIN)
            while not work and not self._closed:
                poller.poll()
                for record in self._ring.take(MOST_BYTES)[0]:
                    if todo := self._told(record):
                        work.append(todo)
        if not work:
            return
        # Not by threading.Thread, which waits until the thread runs.
        _thread.start_new_thread(self._hear, ())
        for other in work[1:]:
            _thread.start_new_thread(other, ())
        work[0]()

    def _told(self, record: bytes) -> Work | None:
        fields = {
            name: record[at : at + size]
            for name, (at, size) in self._layout.items()
            if name in ("tgid", "time_ns", "comm")
        }
        pid, time_ns = (int.from_bytes(fields[name], "little") for name in ("tgid", "time_ns"))
        name = fields["comm"].split(b"\0", 1)[0].decode("utf-8", "replace")
        return self._started(pid, name, time_ns)
