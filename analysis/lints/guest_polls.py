"""The guest's device accesses make vCPU threads run the main loop's bottom halves."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames, Part
from qtrace.analysis.lint import SHOWN, Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import Bursts, counted, instance_of, most_first, own_runs, place_of
from qtrace.analysis.runs import on_vcpus
from qtrace.analysis.stacks import functions, poll_caller
from qtrace.analysis.wording import who
from qtrace.trace.schema import PARTIAL
from qtrace.units import show

WINDOW_NS = 1_000_000_000


class GuestPolls:
    """Runs of the contexts of main inside aio_poll() on vCPU threads, in the busiest second.

    Each is a moment in which the guest waits, the BQL is held, and the main loop's bottom
    halves are in a vCPU thread's hands. The device is known where a stack is whole: of watched
    bottom halves and of sampled ones.
    """

    def __init__(self, trace: Frames, threshold: Threshold) -> None:
        self._trace = trace
        self._bursts = Bursts(("tid",), WINDOW_NS, threshold.value)
        self._spent: Counter[int] = Counter()
        self._names: dict[int, Counter[str]] = {}
        # Stacks with their frames of poll and device.
        self._stacks: dict[int, Counter[tuple[str, int, int]]] = {}

    def add(self, part: Part) -> None:
        """See ``Fold``."""
        every = on_vcpus(part.runs, part.own_runs)
        mask = np.zeros(len(part.runs), np.bool_)
        mask[every.index] = True
        polled = own_runs(part, mask)
        self._bursts.add(polled, part)
        for tid, own in every.groupby("tid", sort=False):
            number = int(str(tid))
            ended, time = filled(own["end_ns"]), own["time_ns"].to_numpy(np.int64)
            # Runs inside others would be counted twice.
            alone = (ended >= 0) & own["outer"].isna().to_numpy()
            self._spent[number] += int((ended - time)[alone].sum())
            self._names.setdefault(number, Counter()).update(counted(own["name"]))
            keys = own.groupby(["stack", "poll", "device"], observed=True).size()
            told: Any = keys.to_dict()
            self._stacks.setdefault(number, Counter()).update(told)

    def end(self) -> Seen:
        """See ``Fold``."""
        findings = []
        for key, burst in self._bursts.found():
            tid, one, spent = int(key[0]), burst.rows.iloc[0], self._spent[int(key[0])]
            count, rate = self._bursts.counts[key], burst.rate
            stacks = self._stacks[tid]
            paths = _paths(stacks)
            device = next(iter(paths), None)
            way = f": {device}" if device else "; sample whole stacks to see the device"
            findings.append(
                Finding(
                    "guest-polls",
                    self._trace,
                    f"{who('vcpu', one['thread'], tid)} ran {count:,} bottom halves of the"
                    f" main loop inside aio_poll(), up to {rate:,.0f}/s, {show(spent, 'ns')} in"
                    f" all{way}",
                    **place_of(one) | {"name": "", "context": "main", "role": "vcpu"},
                    time_ns=int(one["time_ns"]),
                    value=rate,
                    unit="/s",
                    rows=tuple(sorted(int(row) for row in burst.rows["row"].iloc[:SHOWN])),
                    count=count,
                    instance=instance_of(one),
                    facts={
                        "callers": _callers(stacks),
                        "paths": paths,
                        "spent_ns": spent,
                        "names": most_first(self._names[tid]),
                    },
                )
            )
        return Seen(findings, (), {"polled": self._bursts.counts.total()})


def _callers(stacks: Counter[tuple[str, int, int]]) -> dict[str, int]:
    """Who called aio_poll(), and how many bottom halves ran in there."""
    found: Counter[str] = Counter()
    for (stack, poll, _device), count in stacks.items():
        found[poll_caller(functions(stack), poll) or "?"] += count
    return most_first(found)


def _paths(stacks: Counter[tuple[str, int, int]]) -> dict[str, int]:
    """From the poll out to the guest's access, of whole stacks; how often each was seen."""
    found: Counter[str] = Counter()
    for (stack, poll, device), count in stacks.items():
        if device >= 0 and not stack.startswith(PARTIAL):
            found[" <- ".join(functions(stack)[poll : device + 1])] += count
    return most_first(found)


LINT = Lint(
    name="guest-polls",
    sentence="the guest's device accesses make a vCPU thread run the main loop's bottom halves",
    threshold=Threshold(100, "/s"),
    why="bottom halves a second in the busiest second; a reset of a device makes a few",
    needs="--all",
    evidence="the first runs of the busiest second; whole stacks show the device",
    source="the thread of April 2023 (aio_poll() in a vCPU thread); issue 2111",
    fold=GuestPolls,
    qmp=False,
)
