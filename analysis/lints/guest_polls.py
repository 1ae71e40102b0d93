"""The guest's device accesses make vCPU threads run the main loop's bottom halves."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames
from qtrace.analysis.lint import SHOWN, Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import instance_of, place_of
from qtrace.analysis.runs import on_vcpus
from qtrace.analysis.stacks import functions, poll_caller
from qtrace.analysis.timing import busiest_window
from qtrace.analysis.wording import who
from qtrace.trace.schema import PARTIAL
from qtrace.units import show

WINDOW_NS = 1_000_000_000


def check(trace: Frames, threshold: Threshold) -> Seen:
    """Runs of the contexts of main inside aio_poll() on vCPU threads, in the busiest second.

    Each is a moment in which the guest waits, the BQL is held, and the main loop's bottom
    halves are in a vCPU thread's hands. The device is known where a stack is whole: of watched
    bottom halves and of sampled ones.
    """
    polled = on_vcpus(trace.runs)
    findings = []
    for tid in polled["tid"].unique().tolist():
        part = polled[(polled["tid"] == tid).to_numpy()]
        time = part["time_ns"].to_numpy(np.int64)
        at, _count, rate = busiest_window(time, WINDOW_NS)
        if rate < threshold.value:
            continue
        ended = filled(part["end_ns"])
        # Runs inside others would be counted twice.
        alone = (ended >= 0) & part["outer"].isna().to_numpy()
        spent = int((ended - time)[alone].sum())
        callers = _callers(part)
        paths = _paths(part)
        one = part.iloc[at]
        device = next(iter(paths), None)
        way = f": {device}" if device else "; sample whole stacks to see the device"
        findings.append(
            Finding(
                "guest-polls",
                trace,
                f"{who('vcpu', one['thread'], tid)} ran {len(part):,} bottom halves of the"
                f" main loop inside aio_poll(), up to {rate:,.0f}/s, {show(spent, 'ns')} in"
                f" all{way}",
                **place_of(one) | {"name": "", "context": "main", "role": "vcpu"},
                time_ns=int(one["time_ns"]),
                value=rate,
                unit="/s",
                rows=tuple(sorted(int(row) for row in part["row"].iloc[at : at + SHOWN])),
                count=len(part),
                instance=instance_of(one),
                facts={
                    "callers": callers,
                    "paths": paths,
                    "spent_ns": spent,
                    "names": {str(k): int(v) for k, v in part["name"].value_counts().items() if v},
                },
            )
        )
    return Seen(findings, (), {"polled": len(polled)})


def _callers(part: pd.DataFrame) -> dict[str, int]:
    """Who called aio_poll(), and how many bottom halves ran in there."""
    found: Counter[str] = Counter()
    for stack, poll, _device, count in _stacks(part):
        found[poll_caller(functions(stack), poll) or "?"] += count
    return dict(found.most_common())


def _paths(part: pd.DataFrame) -> dict[str, int]:
    """From the poll out to the guest's access, of whole stacks; how often each was seen."""
    found: Counter[str] = Counter()
    for stack, poll, device, count in _stacks(part):
        if device >= 0 and not stack.startswith(PARTIAL):
            found[" <- ".join(functions(stack)[poll : device + 1])] += count
    return dict(found.most_common())


def _stacks(part: pd.DataFrame) -> list[tuple[str, int, int, int]]:
    """Each distinct stack, its frames of poll and device, and how often it is there."""
    keys = part.groupby(["stack", "poll", "device"], observed=True).size().reset_index(name="n")
    return [(str(a), int(b), int(c), int(d)) for a, b, c, d in keys.to_numpy(object)]


LINT = Lint(
    name="guest-polls",
    sentence="the guest's device accesses make a vCPU thread run the main loop's bottom halves",
    threshold=Threshold(100, "/s"),
    why="bottom halves a second in the busiest second; a reset of a device makes a few",
    needs="--all",
    evidence="the first runs of the busiest second; whole stacks show the device",
    source="the thread of April 2023 (aio_poll() in a vCPU thread); issue 2111",
    check=check,
    qmp=False,
)
