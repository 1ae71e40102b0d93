"""What is known of a host's QEMUs at one moment: plain data, as one line of JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from qtrace.machine.parts import part
from qtrace.record.all_events.histogram import Histogram


@dataclass(frozen=True)
class StuckLoop:
    """A loop that does not come back: its thread's role, its context, for how long at least."""

    role: str
    context: str
    seconds: float


@dataclass(frozen=True)
class StepCounts:
    """QMP commands and jobs of one QEMU (``qtrace.monitor.vm_steps``).

    Attributes:
        commands, seconds: answered ones, and how long they took together, by name.
        buckets: how many took at most each of ``BOUNDS_NS``, and longer than all.
        waiting: for how long the oldest unanswered one of a name has waited.
        jobs: how many there are now, by status.
        changes: how many times one has come to have a status.
    """

    commands: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    buckets: list[int] = field(default_factory=list)
    waiting: dict[str, float] = field(default_factory=dict)
    jobs: dict[str, int] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BottomHalfTimes:
    """Of the bottom halves of one name.

    Attributes:
        waits: from schedule to run; None where that is not asked for.
    """

    runs: Histogram
    waits: Histogram | None = None

    @classmethod
    def load(cls, value: dict[str, Any]) -> BottomHalfTimes:
        runs, waits = value["runs"], value["waits"]
        return cls(_histogram(runs), _histogram(waits) if waits else None)

    def __add__(self, other: BottomHalfTimes) -> BottomHalfTimes:
        both = self.waits is not None and other.waits is not None
        waits = self.waits + other.waits if both else None  # type: ignore[operator]
        return BottomHalfTimes(self.runs + other.runs, waits)


def _histogram(value: dict[str, Any]) -> Histogram:
    return Histogram(tuple(value["buckets"]), value["total_ns"])


@dataclass(frozen=True)
class ProbeState:
    """The probes of all QEMUs together.

    Attributes:
        missing: why there are none, empty while there are.
        unarmed: QEMUs that are looked at only, by reason.
        lost: hits that nobody has seen.
        programs: how many that have no main loop have started.
        unsummed: QEMUs whose bottom halves are not timed although it was asked for, by reason.
        unsummed_hits: runs and waits that found no room; None where nobody asked for any.
    """

    missing: str = ""
    unarmed: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    programs: int = 0
    unsummed: dict[str, int] = field(default_factory=dict)
    unsummed_hits: int | None = None


@dataclass(frozen=True)
class VmState:
    """One QEMU.

    Attributes:
        vm: the guest's name as a label, made unique on this host.
        stuck: empty while all loops come back.
        findings: how many of each kind there are now.
        in_flight, stuck_requests: requests by the driver of the node at fault.
        bql_wait_s: how long somebody has been waiting for the BQL now, at least.
        unreadable_s: for how long the kernel has not answered about it; 0 while it does.
        held: why none of it can run (a signal, a tracer, its cgroup), empty while it can.
        inconclusive: whether the last look could not tell.
        looks, looking_s: how many looks there were, and how long they took together.
        found_at: when it was found, in seconds of CLOCK_MONOTONIC.
        seen_at: the last look, likewise; 0 before the first.
        probes: how many places are probed now.
        armed_s: from its start until they were; 0 where it was there before the monitor.
        steps: QMP commands and jobs, as far as probes have seen them.
        ran: how many times watched bottom halves have run, by name and role of the thread.
        found: how many findings of each kind there have been so far.
        times: how long bottom halves took, by name, where it was asked for.
    """

    vm: str
    program: str
    version: str
    build_id: str
    stuck: tuple[StuckLoop, ...] = ()
    findings: dict[str, int] = field(default_factory=dict)
    in_flight: dict[str, int] = field(default_factory=dict)
    stuck_requests: dict[str, int] = field(default_factory=dict)
    bql_wait_s: float = 0.0
    unreadable_s: float = 0.0
    held: str = ""
    inconclusive: bool = False
    looks: int = 0
    looking_s: float = 0.0
    found_at: float = 0.0
    seen_at: float = 0.0
    probes: int = 0
    armed_s: float = 0.0
    steps: StepCounts = field(default_factory=lambda: StepCounts())
    ran: dict[str, dict[str, int]] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    times: dict[str, BottomHalfTimes] = field(default_factory=dict)

    @part
    def json(self) -> str:
        """It as JSON: made once, as most of them are told again and again as they are."""
        return json.dumps(self, default=vars)

    @property
    def known(self) -> bool:
        """Whether what looks have shown still says something of now."""
        return self.looks > 0 and not self.unreadable_s


@dataclass(frozen=True)
class HostState:
    """All of them.

    Attributes:
        others: QEMU programs without a main loop, which are counted only.
        refused: QEMUs that could not be looked into, by reason.
        cpu_s: processor time that the looker and the recorder have used.
        at: when this was true, in seconds of CLOCK_MONOTONIC.
        ended: how many QEMUs have ended, by how: ``SIGSEGV``, ``status 0``.
        probes: None where the monitor is to look only.
        lines_dropped: what the monitor said and nobody read.
    """

    vms: tuple[VmState, ...]
    others: int
    refused: dict[str, int]
    cpu_s: float
    at: float
    ended: dict[str, int] = field(default_factory=dict)
    probes: ProbeState | None = None
    lines_dropped: int = 0

    def dump(self) -> str:
        """One line."""
        rest = {name: value for name, value in vars(self).items() if name != "vms"}
        vms = ", ".join(vm.json for vm in self.vms)
        return f'{{"vms": [{vms}], {json.dumps(rest, default=vars).removeprefix("{")}'

    @classmethod
    def load(cls, line: str) -> HostState:
        value: dict[str, Any] = json.loads(line)
        vms = []
        for one in value.pop("vms"):
            stuck = tuple(StuckLoop(**loop) for loop in one.pop("stuck"))
            steps = StepCounts(**one.pop("steps"))
            times = {name: BottomHalfTimes.load(t) for name, t in one.pop("times").items()}
            vms.append(VmState(**one, stuck=stuck, steps=steps, times=times))
        probes = value.pop("probes")
        return cls(vms=tuple(vms), **value, probes=ProbeState(**probes) if probes else None)
