"""A thread that stays in one AIO_WAIT_WHILE() while bottom halves wait for it."""

from __future__ import annotations

from functools import partial

import pandas as pd

from qtrace.analysis.frames import Frames
from qtrace.analysis.lint import Finding, Lint, Once, Seen, Threshold
from qtrace.analysis.lint_groups import place_of
from qtrace.analysis.stacks import functions, judge_wait
from qtrace.analysis.wording import thread_of
from qtrace.trace.details import detail_column
from qtrace.units import show

FRAMES = 4


def check(trace: Frames, threshold: Threshold) -> Seen:
    """Looks (``blocked`` rows) at the same thread in the same frames of the same poll.

    Whether it returned in between cannot be seen, but the stack pointer and the pc it sleeps
    at are equal too.
    """
    events = trace.events
    looks = events[((events["event"] == "blocked") & (events["context"] != "")).to_numpy()]
    place = [tuple(map(str, waits)) for waits in detail_column(looks["detail"], "waits_at", [])]
    looks = looks.assign(place=pd.Series(place, looks.index, dtype=object))
    findings = []
    for _key, part in looks.groupby(["tid", "stack", "place", "context"], observed=True):
        first, last = part.iloc[0], part.iloc[-1]
        lasted = int(last["time_ns"] - first["time_ns"])
        stack = functions(last["stack"])
        if lasted < threshold.value or judge_wait(last["stack"]) == 0:
            continue
        waits = " <- ".join(stack[judge_wait(last["stack"]) + 1 :][:FRAMES])
        # Rows about the thread alone name none.
        names = sorted({str(name) for name in part["name"]} - {""})
        pending = f", while {', '.join(names)} waited for it" if names else ""
        findings.append(
            Finding(
                "stuck-wait",
                trace,
                f"{thread_of(last)} polled `{last['context']}` for {show(lasted, 'ns')} or longer"
                f" in {waits}{pending}",
                **place_of(last) | {"name": names[0] if names else ""},
                time_ns=int(last["time_ns"]),
                value=lasted,
                unit="ns",
                rows=(int(first["row"]), int(last["row"])),
                count=len(part),
                level="error",
                facts={"waits": stack[judge_wait(last["stack"]) + 1 :], "pending": names},
            )
        )
    return Seen(findings, (), {"looks": len(looks)})


LINT = Lint(
    name="stuck-wait",
    sentence="a thread stays in one AIO_WAIT_WHILE() while bottom halves wait for it",
    threshold=Threshold(1e9, "ns"),
    why="how long the same wait is seen; a drain of a healthy disk takes milliseconds",
    needs="",
    evidence="the first and the last look at the thread, with its whole stack",
    source="4720cbeea1, 6690302b84, 91ba0e1c38; Proxmox savevm-async, March 2025",
    fold=partial(Once, check),
    qmp=False,
)
