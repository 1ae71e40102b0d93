"""The last events of one QEMU, as the kernel sent them: a flight recorder in memory.

The standard library only: the recorder, which keeps them, makes no rows.
"""

from __future__ import annotations

from collections import deque

# Of one QEMU: 13,000 steps, or 50 hits with as much stack as is ever copied.
MOST_BYTES = 2 << 20
# An object of Python's, and its place in the queue.
OVERHEAD = 160

Record = tuple[int, bool, bytes]
"""Time, whether it is a step, and the record."""


class LastEvents:
    """Those of the last so many nanoseconds, at most so many bytes.

    Attributes:
        since_ns: all that there were from then on are here.
    """

    def __init__(self, span_ns: int, since_ns: int) -> None:
        self._span_ns = span_ns
        self._records: deque[Record] = deque()
        self._bytes = 0
        self.since_ns = since_ns

    def add(self, time_ns: int, is_step: bool, record: bytes) -> None:
        self._records.append((time_ns, is_step, record))
        self._bytes += len(record) + OVERHEAD
        while self._bytes > MOST_BYTES:
            self._drop()

    def take(self, now_ns: int) -> list[Record]:
        """What there is now, in the order of time; it stays."""
        while self._records and self._records[0][0] < now_ns - self._span_ns:
            self._drop()
        self.since_ns = max(self.since_ns, now_ns - self._span_ns)
        return sorted(self._records)

    def _drop(self) -> None:
        time_ns, _is_step, record = self._records.popleft()
        self._bytes -= len(record) + OVERHEAD
        self.since_ns = max(self.since_ns, time_ns + 1)
