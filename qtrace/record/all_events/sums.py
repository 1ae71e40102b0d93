"""How long bottom halves take, and have waited before, summed in the kernel: probes/stats.bpf.c.

Of the sites of `--all` those of schedules, runs and returns; no event leaves the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qtrace.event_kinds import ARMED
from qtrace.host.bpf_syscall import MapReader, delete_entry, map_entries
from qtrace.knowledge import SCHEDULED
from qtrace.record.all_events.histogram import Histogram
from qtrace.record.ebpf.bpf_program import Program
from qtrace.sites.all_plan import AllPlan, AllSite

FILE = "stats.bpf.c"
KEY, SUM = struct.Struct("<QQ"), struct.Struct("<3Q32Q32Q")
KINDS = ("enqueue", "run", "return")


@dataclass(frozen=True, slots=True)
class Sum:
    """Of the bottom halves of one QEMU that have the same callback.

    Attributes:
        callback: its run-time address.
        name: where QEMUBH's name lies; 0 where there is none.
        waits: from schedule to run, of those whose schedule was seen.
    """

    callback: int
    name: int
    runs: Histogram
    waits: Histogram


class Sums:
    """The program for one build, in the kernel; it is for all QEMUs of that build.

    Args:
        waits: whether it is summed how long they have waited, too.

    Raises RecorderUnavailable.
    """

    def __init__(self, plan: AllPlan, *, waits: bool) -> None:
        self.plan = plan
        self._sites = [site for site in plan.sites if _is_needed(site, waits)]
        needed = {site.program for site in self._sites}
        here = {"WAITS": int(waits), "SCHEDULED_FLAG": SCHEDULED}
        self._program = Program(
            FILE,
            {
                name: (function, {**filling, **here})
                for name, (function, filling) in plan.programs.items()
                if name in needed
            },
            {},
        )
        spec = self._program.specs["sums"]
        self._reader = MapReader(
            self._program.maps["sums"], KEY.size, SUM.size, spec.max_entries
        )  # fmt: skip
        self._program.count_losses(True)

    def probes(self) -> Iterator[tuple[int, Mapping[int, str]]]:
        """Each function, and where it belongs: link-time addresses, and what to call them. In the
        order in which they are to be armed: no return without its run, no run without its
        schedule that was not there to be seen."""
        for kind in ARMED:
            for program in sorted({site.program for site in self._sites if site.kind == kind}):
                yield (
                    self._program.functions[program],
                    {
                        site.vaddr: f"{site.kind}, {site.where}"
                        for site in self._sites
                        if site.program == program and site.kind == kind
                    },
                )

    @property
    def labels(self) -> dict[int, str]:
        """All of these places."""
        return {vaddr: label for _fd, labels in self.probes() for vaddr, label in labels.items()}

    def read(self) -> dict[int, list[Sum]]:
        """What is summed so far, by process. Raises OSError."""
        found: dict[int, list[Sum]] = {}
        for key, value in self._reader.read():
            callback, pid = KEY.unpack(key)
            name, ran_ns, waited_ns, *buckets = SUM.unpack(value)
            half = len(buckets) // 2
            one = Sum(
                callback, name, Histogram.of(buckets[:half], ran_ns),
                Histogram.of(buckets[half:], waited_ns),
            )  # fmt: skip
            found.setdefault(pid, []).append(one)
        return found

    def lost(self) -> int:
        """Runs and waits that found no room in a map."""
        return sum(count for _ip, count in self._program.counts("lost"))

    def forget_pending(self, pid: int) -> None:
        """What has begun or was scheduled in a process that nobody probes now: its end, and its
        run, are not seen. Raises OSError."""
        self._forget(pid, ("running", "scheduled"))

    def forget(self, pid: int) -> None:
        """All of one process. Raises OSError."""
        self._forget(pid, ("running", "scheduled", "sums"))

    def close(self) -> None:
        self._program.close()

    def _forget(self, pid: int, maps: tuple[str, ...]) -> None:
        for name in maps:
            fd, spec = self._program.maps[name], self._program.specs[name]
            keys = [key for key, _value in map_entries(fd, spec.key_size, spec.value_size)]
            for key in keys:
                if KEY.unpack(key)[1] == pid:
                    delete_entry(fd, key)


def _is_needed(site: AllSite, waits: bool) -> bool:
    if site.kind == "enqueue":
        # Where the flags are in a register the program looks at them.
        return waits and (not site.new_flags or bool(site.new_flags & SCHEDULED))
    return site.kind in KINDS
