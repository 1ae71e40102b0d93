"""Whole stacks of every Nth event of `--all`, unwound as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qtrace.process.hit import Hit
from qtrace.process.stack import Unwinder
from qtrace.record.ebpf.bpf_program import Program
from qtrace.record.ebpf.ebpf_recorder import HitReader
from qtrace.record.ebpf.record_ring import PAGE, RecordRing
from qtrace.record.hit_stacks import Stacks
from qtrace.trace.schema import escape

# As much is unwound at a time: some hundred of them, in 4 ms at most.
MOST = 4 << 20

# Each probe of each CPU counts for itself which is its Nth.
ENOUGH = 0.9


def without_room(there: int, due: int) -> str:
    """That whole stacks are missing, in a sentence; empty where as many are there as were due, but
    for the few that were under way at either end."""
    if there >= due * ENOUGH:
        return ""
    return (
        f"{there:,} of {due:,} whole stacks found room, the others have their ends alone: a larger"
        " --stacks-every spreads them"
    )


class StackSamples:
    """Reads the program's ring buffer of stacks. ``count`` is how many came.

    Args:
        saw: is told each one: thread, its name, its frames.
    """

    def __init__(
        self, program: Program, unwinder: Unwinder, saw: Callable[[int, str, Sequence[str]], None]
    ) -> None:
        self._read = HitReader(program.layouts["events"])
        self._whole = Stacks(unwinder)
        self._saw = saw
        pages = program.specs["events"].max_entries // PAGE
        self._ring = RecordRing(program.maps["events"], pages)
        self._stacks: dict[str, list[tuple[int, int]]] = {}
        self.count = 0

    def take(self, since_ns: int, until_ns: int) -> dict[str, Any]:
        """What came since the last time: time and thread of each event between these times, by
        folded stack.

        The leaf is left out: it is the function with the probe. Of a run the converter puts
        the callback there.
        """
        for record in self._ring.take(MOST)[0]:
            hit = self._read(record)
            if since_ns <= hit.time_ns < until_ns:
                self._receive(hit)
        stacks, self._stacks = self._stacks, {}
        return {"stacks": stacks} if stacks else {}

    def _receive(self, hit: Hit) -> None:
        frames = self._whole.frames(hit)[:-1]
        self._saw(hit.tid, hit.thread, frames)
        folded = ";".join(escape(frame, extra=";") for frame in frames)
        self._stacks.setdefault(folded, []).append((hit.time_ns, hit.tid))
        self.count += 1
