"""An event loop that keeps itself busy: its bottom halves only schedule each other."""

from __future__ import annotations

import numpy as np

from qtrace.analysis.frames import Frames
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import busiest, place_of
from qtrace.analysis.lints.storm import WINDOW_NS
from qtrace.analysis.qemu_facts import COMPLETIONS
from qtrace.analysis.runs import self_made
from qtrace.analysis.timing import busiest_window
from qtrace.analysis.wording import thread_of

SHARE = 0.9


def check(trace: Frames, threshold: Threshold) -> Seen:
    """A context's busiest 0.1 s in which nine runs of ten were self-made.

    Self-made is a run that was scheduled inside a run of the same bottom half, or of one that
    was itself scheduled inside a run of it (two that wake each other): no request, no other
    thread and no file descriptor kept the loop going. File descriptors that are always ready
    (75dcb4d790) do not show in a trace of bottom halves.
    """
    runs = trace.runs
    # A request whose completion submits the next one keeps no argument for long, but malloc()
    # hands the same address out again: with completions only the direct case is certain.
    own = self_made(runs, generations=1)
    own = own | (self_made(runs, generations=2) & ~runs["name"].isin(COMPLETIONS).to_numpy())
    findings = []
    for key, part in runs[own].groupby(["context", "tid"], observed=True):
        context, tid = str(key[0]), int(str(key[1]))
        time = part["time_ns"].to_numpy(np.int64)
        at, count, rate = busiest_window(time, WINDOW_NS)
        if rate < threshold.value:
            continue
        same = (runs["tid"] == tid).to_numpy() & (runs["context"] == context).to_numpy()
        beside = runs["time_ns"].to_numpy(np.int64)[same]
        held = beside.searchsorted(time[at] + WINDOW_NS) - beside.searchsorted(time[at])
        if count < SHARE * held:
            continue
        kinds = part["name"].iloc[at : at + count].astype(object).value_counts()
        names = [str(name) for name in kinds.index]
        one = part.iloc[at]
        findings.append(
            Finding(
                "busy-loop",
                trace,
                f"{thread_of(one)} spun in `{context or '?'}`: {count / held:.0%} of its"
                f" {held:,} runs in 0.1 s were {' and '.join(names[:2])} scheduling themselves",
                **place_of(one) | {"name": names[0]},
                **busiest(trace.instances, part, at, rate),
                facts={"share": round(float(count / held), 4), "names": names},
            )
        )
    return Seen(findings, (), {"self_made": int(own.sum())})


LINT = Lint(
    name="busy-loop",
    sentence="an event loop keeps itself busy: its bottom halves only schedule each other",
    threshold=Threshold(10_000, "/s"),
    why="self-made runs a second in the busiest 0.1 s; nine of ten runs there must be",
    needs="--all",
    evidence="the first schedules and runs of the busiest moment",
    source="21891a5a30 (QEMU's own warning, dropped because it named no cause); b7a745dc33",
    check=check,
    qmp=False,
)
