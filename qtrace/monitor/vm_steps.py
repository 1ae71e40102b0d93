"""QMP commands and jobs of one QEMU, counted from the hits of its probes: no row is kept.

What is known of a command's way, and how its steps belong together: ``qtrace.record.qmp_rows``.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from qtrace.monitor.labels import OTHER

# As in qtrace/record/qmp_rows.py: all steps of a command are met so near on one stack.
NEAR = 8192

# Upper bounds of QMP command times, in nanoseconds.
BOUNDS_NS = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000, 10_000_000_000)
# Jobs of one QEMU that are kept in mind.
MOST_JOBS = 1000


class _Command:
    __slots__ = ("began_ns", "begun", "name", "sp")

    def __init__(self, name: str, sp: int, began_ns: int) -> None:
        self.name, self.sp, self.began_ns = name, sp, began_ns
        # Whether QEMU carries it out: only then is its name one that QEMU knows.
        self.begun = False


class CommandNames:
    """The names that have labels of their own: of commands that QEMU carried out, so many of a
    host. Whoever sends a QEMU names that it does not have makes no new ones."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def label(self, name: str, begun: bool) -> str:
        if begun and name and len(self._known) < self._most:
            self._known.add(name)
        return name if name in self._known else OTHER


class VmSteps:
    """Of one QEMU."""

    def __init__(self, names: CommandNames) -> None:
        self._names = names
        self._open: list[_Command] = []
        self._counts: Counter[str] = Counter()
        self._took_ns: Counter[str] = Counter()
        self._buckets = [0] * (len(BOUNDS_NS) + 1)
        self._jobs: dict[str, int] = {}
        self._changes: Counter[int] = Counter()
        # The number of the status that a job has when it is gone, once it is known.
        self.gone: int | None = None
        self.changed = True

    def step(self, name: str, time_ns: int, sp: int, first: int, second: int, text: str) -> None:
        """A step was met: of a command, or ``status`` of a job.

        Args:
            first, second: arguments; ``text``: what one of them points at.
        """
        self.changed = True
        if name == "command":
            self._open = [c for c in self._open if abs(c.sp - sp) >= NEAR]
            self._open.append(_Command(text, sp, time_ns))
        elif name == "begin":
            command = self._find(first)
            if command:
                command.begun = True
        elif name == "reply":
            command = self._find(sp)
            if command:
                self._open.remove(command)
                self._answered(command, time_ns)
        elif name == "status":
            self._changes[second & 0xFFFFFFFF] += 1
            self._job(text, second & 0xFFFFFFFF)

    def report(self, now_ns: int) -> dict[str, Any]:
        """What is known, as ``StepCounts`` has it; jobs by the numbers of their statuses."""
        waiting: dict[str, float] = {}
        for command in self._open:
            label = self._names.label(command.name, command.begun)
            waited_s = (now_ns - command.began_ns) / 1e9
            waiting[label] = max(waiting.get(label, 0.0), waited_s)
        # What waits grows without any hit.
        self.changed = bool(self._open)
        return {
            "commands": dict(self._counts),
            "seconds": {name: ns / 1e9 for name, ns in self._took_ns.items()},
            "buckets": self._buckets,
            "waiting": waiting,
            "jobs": dict(Counter(s for s in self._jobs.values() if s != self.gone)),
            "changes": dict(self._changes),
        }

    def _answered(self, command: _Command, time_ns: int) -> None:
        label = self._names.label(command.name, command.begun)
        took_ns = time_ns - command.began_ns
        self._counts[label] += 1
        self._took_ns[label] += took_ns
        self._buckets[sum(took_ns > bound for bound in BOUNDS_NS)] += 1

    def _job(self, name: str, status: int) -> None:
        if status == self.gone:
            self._jobs.pop(name, None)
        elif name in self._jobs or len(self._jobs) < MOST_JOBS:
            self._jobs[name] = status

    def _find(self, sp: int) -> _Command | None:
        return next((c for c in self._open if abs(c.sp - sp) < NEAR), None)
