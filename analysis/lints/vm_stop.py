"""vm_stop() inside a vCPU thread's aio_poll(): it asks for the stop, and the guest runs on."""

from __future__ import annotations

import numpy as np

from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.occurrences import grouped, times, who
from qtrace.analysis.stacks import stack_facts
from qtrace.analysis.traces import AnalysedTrace
from qtrace.analysis.verdicts import effective_role

STOPPERS = ("vm_stop", "save_snapshot", "load_snapshot")


def check(trace: AnalysedTrace, _threshold: Threshold) -> Seen:
    """Calls of functions that need the guest stopped, below an aio_poll() of a vCPU thread.

    Without one it is the vCPU's own loop, which does stop (an internal error of KVM).
    """
    events = trace.events
    calls = events[((events["event"] == "call") & events["name"].isin(STOPPERS)).to_numpy()]
    facts = stack_facts(calls["stack"])
    pid = trace.header["target"].get("pid", -1)
    role = effective_role(calls["role"], calls["tid"], facts["vcpu"].to_numpy(np.bool_), pid)
    inside = (role == "vcpu") & facts["in_poll"].to_numpy(np.bool_)
    found = calls.assign(role=role, worst=-calls["time_ns"])[inside]
    findings = []
    for group in grouped(found, ("name", "tid"), "worst", ("row",)):
        one = group.worst
        thread = who(one["role"], one["thread"], int(one["tid"]))
        ran = np.flatnonzero(
            (trace.instances["tid"] == one["tid"]).to_numpy(np.bool_, na_value=False)
            & (trace.instances["ended_ns"] <= one["time_ns"]).to_numpy(np.bool_, na_value=False)
            & (trace.instances["end"] == "run").to_numpy()
        )
        findings.append(
            Finding(
                "vm-stop", trace,
                f"{one['name']}() was called {times(group.count)} inside an aio_poll() of {thread}:"
                " there vm_stop() only asks for the stop and returns, the guest runs on",
                one["name"], "", int(one["tid"]), one["thread"], one["role"],
                int(one["time_ns"]), group.count, "", group.rows, group.count, "error",
                int(ran[-1]) if len(ran) else None,
            )
        )  # fmt: skip
    return Seen(findings, (), {"calls": len(calls)})


LINT = Lint(
    name="vm-stop",
    sentence="a job stopped the guest from a vCPU thread, where vm_stop() does not",
    threshold=None,
    why="",
    needs="",
    evidence="the calls, whose stacks show the poll",
    source='issue 2111; vm_stop() in system/cpus.c ("FIXME: should not return to device code")',
    check=check,
)
