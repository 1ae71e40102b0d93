"""vm_stop() inside a vCPU thread's aio_poll(): it asks for the stop, and the guest runs on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames, Part
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import RUN_COLUMNS, Groups, instance_of, own_runs, place_of
from qtrace.analysis.stacks import stack_facts
from qtrace.analysis.verdicts import effective_role
from qtrace.analysis.wording import thread_of, times
from qtrace.units import show

JOBS = ("snapshot_save_job_bh", "snapshot_load_job_bh")
# Of a save on the main thread STOP to RESUME is nine tenths and more, elsewhere a hundredth.
STOPPED = 0.1
JOB_COLUMNS = (*RUN_COLUMNS, "end_ns")
STOPPERS = ("vm_stop", "save_snapshot", "load_snapshot")


class VmStop:
    """Calls of functions that need the guest stopped, below an aio_poll() of a vCPU thread.

    Without one it is the vCPU's own loop, which does stop (an internal error of KVM).
    """

    def __init__(self, trace: Frames, _threshold: Threshold) -> None:
        self._trace = trace
        events = trace.events
        calls = events[((events["event"] == "call") & events["name"].isin(STOPPERS)).to_numpy()]
        facts = stack_facts(calls["stack"])
        vcpu_frames = facts["vcpu"].to_numpy(np.bool_)
        role = effective_role(calls["role"], calls["tid"], vcpu_frames, trace.file)
        inside = (role == "vcpu") & facts["in_poll"].to_numpy(np.bool_)
        found = calls.assign(role=role, worst=-calls["time_ns"])[inside]
        self._calls = len(calls)
        self._groups = Groups(("name", "tid"), "worst", ("row",))
        self._groups.add(found)
        # The instance that each of these ran in.
        self._ran: dict[int, int] = {}
        rows = trace.qmp_steps
        self._events = rows[(rows["step"] == "event").to_numpy()]
        self._jobs: list[pd.DataFrame] = []

    def add(self, part: Part) -> None:
        """See ``Fold``."""
        instances = part.instances
        ran = part.own & (instances["end"] == "run").to_numpy()
        tid, ended = filled(instances["tid"]), filled(instances["ended_ns"])
        for group in self._groups.groups():
            one = group.worst
            own = ran & (tid == one["tid"]) & (ended <= one["time_ns"])
            if own.any():
                last = int(part.number[own].max())
                self._ran[one["index"]] = max(last, self._ran.get(one["index"], -1))
        runs = part.runs
        jobs = own_runs(
            part, (runs["name"].isin(JOBS) & runs["end_ns"].notna()).to_numpy(), JOB_COLUMNS
        )
        # Of thousands of jobs few resumed the guest: only these are looked at one by one.
        resumes = self._events.loc[(self._events["name"] == "RESUME").to_numpy(), "time_ns"]
        before = resumes.to_numpy().searchsorted(jobs["time_ns"].to_numpy(), "left")
        until = resumes.to_numpy().searchsorted(filled(jobs["end_ns"]), "right")
        self._jobs.append(jobs[until > before])

    def end(self) -> Seen:
        """See ``Fold``."""
        findings = []
        for group in self._groups.groups():
            one = group.worst
            findings.append(
                Finding(
                    "vm-stop",
                    self._trace,
                    f"{one['name']}() was called {times(group.count)} inside an aio_poll() of"
                    f" {thread_of(one)}: there vm_stop() only asks for the stop and returns, the"
                    " guest runs on",
                    **place_of(one) | {"context": ""},
                    time_ns=int(one["time_ns"]),
                    value=group.count,
                    rows=group.rows,
                    count=group.count,
                    level="error",
                    instance=self._ran.get(one["index"]),
                )
            )
        jobs = [one for part in self._jobs for one in part.to_dict("records")]
        gaps, doubts = _gaps(self._trace, self._events, jobs)
        return Seen([*findings, *gaps], doubts, {"calls": self._calls})


def _gaps(
    trace: Frames, rows: pd.DataFrame, jobs: Iterable[dict[Any, Any]]
) -> tuple[list[Finding], list[str]]:
    """Saves and loads that resumed a guest which had been stopped for a small part of them.

    vm_start() at their end finds the request that vm_stop() has posted, and sends STOP and
    RESUME back to back, or RESUME alone when the main loop has taken it meanwhile.
    """
    findings, doubts = [], []
    for one in jobs:
        inside = rows["time_ns"].between(one["time_ns"], one["end_ns"]).to_numpy()
        sent = rows[inside]
        resumed = sent[(sent["name"] == "RESUME").to_numpy()].tail(1)
        if resumed.empty:
            continue
        stopped = sent[(sent["name"] == "STOP").to_numpy()].tail(1)
        if stopped.empty and trace.lost_events:
            doubts.append(f"no STOP was recorded for {one['name']}, but events were lost")
            continue
        took = int(one["end_ns"] - one["time_ns"])
        gap, stood = 0, "sent RESUME without a STOP before it: the guest ran on"
        if not stopped.empty:
            gap = int(resumed["time_ns"].iloc[0] - stopped["time_ns"].iloc[0])
            stood = f"from STOP to RESUME the guest stood still for {show(gap, 'ns')} only"
        if gap >= STOPPED * took:
            continue
        numbers = (one["row"], *stopped["row"], *resumed["row"])
        findings.append(
            Finding(
                "vm-stop",
                trace,
                f"{one['name']} took {show(took, 'ns')} on {thread_of(one)}, but {stood}",
                **place_of(one),
                time_ns=int(one["time_ns"]),
                value=gap,
                unit="ns",
                rows=tuple(sorted(int(number) for number in numbers)),
                level="error",
                instance=instance_of(one),
            )
        )
    return findings, doubts


LINT = Lint(
    name="vm-stop",
    sentence="a job stopped the guest from a vCPU thread, where vm_stop() does not",
    threshold=None,
    why="",
    needs="",
    evidence="the calls, whose stacks show the poll; the run, with STOP and RESUME in it",
    source='issue 2111; vm_stop() in system/cpus.c ("FIXME: should not return to device code")',
    fold=VmStop,
)
