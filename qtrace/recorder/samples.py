"""Whole stacks of every Nth event of `--all`, unwound as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qtrace.recorder.ebpf import read_hit
from qtrace.recorder.program import Program, RingBuffer
from qtrace.recorder.rows import frames_of
from qtrace.target.stack import Unwinder
from qtrace.trace.schema import escape


class StackSamples:
    """Reads the program's ring buffer of stacks. ``count`` is how many came.

    Args:
        saw: is told each one: thread, its name, its frames.
    """

    def __init__(
        self, program: Program, unwinder: Unwinder, saw: Callable[[int, str, Sequence[str]], None]
    ) -> None:
        self._layout = program.layout
        self._unwinder = unwinder
        self._saw = saw
        self._ring = RingBuffer(program, "events", self._receive)
        self._stacks: dict[str, list[tuple[int, int]]] = {}
        self.count = 0

    def take(self) -> dict[str, Any]:
        """What came since the last time: time and thread of each event, by folded stack.

        The leaf is left out: it is the function with the probe. Of a run the converter puts
        the callback there.
        """
        self._ring.consume()
        stacks, self._stacks = self._stacks, {}
        return {"stacks": stacks} if stacks else {}

    def _receive(self, address: int, _size: int) -> None:
        hit = read_hit(self._layout, address)
        frames = frames_of(hit, self._unwinder)[:-1]
        self._saw(hit.tid, hit.thread, frames)
        folded = ";".join(escape(frame, extra=";") for frame in frames)
        self._stacks.setdefault(folded, []).append((hit.time_ns, hit.tid))
        self.count += 1
