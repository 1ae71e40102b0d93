"""A watched bottom half ran in main, yet a vCPU thread could have run it: the race is open."""

from __future__ import annotations

import numpy as np

from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames
from qtrace.analysis.lint import SHOWN, Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import place_of
from qtrace.analysis.losses import disturbed
from qtrace.analysis.runs import on_vcpus
from qtrace.analysis.wording import times
from qtrace.units import show


def check(trace: Frames, threshold: Threshold) -> Seen:
    """Watched instances that ran on the main thread, beside the polls of vCPU threads.

    Two things are told apart. A near miss: while it was pending, a vCPU thread ran a bottom
    half of the main context inside aio_poll(). And the open window: it was scheduled inside a
    bottom half of the main loop and ran in a later round of it, so that it was pending while
    the main thread gave up the BQL for ppoll() (util/main-loop.c, since d759c951f3), which is
    when a vCPU thread gets into aio_poll(); and vCPU threads were seen to do that.
    """
    instances, runs = trace.instances, trace.runs
    polled = on_vcpus(runs)
    polled = polled[(polled["context"] == "main").to_numpy()]
    polls = polled["time_ns"].to_numpy(np.int64)
    span = trace.events["time_ns"].iloc[[0, -1]].to_numpy(np.int64)
    rate = len(polls) * 1e9 / max(int(span[1] - span[0]), 1)
    watched = instances["name"].isin(trace.watched).to_numpy()
    safe = watched & (instances["context"] == "main").to_numpy()
    safe = safe & (instances["verdict"].isin(("main-loop", "nested-poll")).to_numpy())
    scheduled, ended = filled(instances["scheduled_ns"]), filled(instances["ended_ns"])
    safe = safe & ((scheduled >= 0) & ~disturbed(scheduled, ended, trace.losses))
    across = np.zeros(len(instances), np.bool_)
    within = (runs["parent"].notna() & runs["instance"].notna()).to_numpy()
    across[filled(runs["instance"])[within]] = True
    across = across & ((instances["verdict"] == "main-loop").to_numpy())
    columns = ["name", "context", "tid", "thread", "role", "scheduled_ns", "ended_ns", "wait_ns",
               "scheduled_row", "ended_row"]  # fmt: skip
    found = instances.loc[safe, columns].assign(across=across[safe])
    first = polls.searchsorted(filled(found["scheduled_ns"]), side="right")
    found["misses"] = polls.searchsorted(filled(found["ended_ns"])) - first
    found["first"] = first
    findings = []
    for name, part in found.groupby("name", observed=True):
        misses = part[(part["misses"] > 0).to_numpy()]
        opened = part[part["across"].to_numpy()]
        if misses.empty and (opened.empty or rate < threshold.value):
            continue
        shown = (opened if misses.empty else misses).nlargest(SHOWN, "wait_ns")
        one = shown.iloc[0]
        rows = {int(row) for row in (*shown["scheduled_row"], *shown["ended_row"])}
        # Where no poll was caught in between, the one before it shows that vCPU threads do.
        near = shown["first"].to_numpy() - (1 if misses.empty else 0)
        near = near[(near >= 0) & (near < len(polled))]
        rows |= {int(row) for row in polled["row"].to_numpy(np.int64)[near]}
        pending = int(opened["wait_ns"].sum())
        missed = (
            f"{times(len(misses))} a vCPU thread ran bottom halves of `main` while it was pending"
            if len(misses)
            else f"vCPU threads ran {rate:,.0f} bottom halves of `main` a second in aio_poll()"
        )
        findings.append(
            Finding(
                "exposure",
                trace,
                f"the race of {name} is open: it ran on the main thread {times(len(part))}, was"
                f" pending across the main loop's ppoll() in {len(opened):,} of them"
                f" ({show(pending, 'ns')} in all), and {missed}",
                **place_of(one),
                time_ns=int(one["ended_ns"]),
                value=rate,
                unit="/s",
                rows=tuple(sorted(rows)),
                count=len(part),
                instance=int(shown.index[0]),
                facts={
                    "near_misses": len(misses),
                    "crossed_ppoll": len(opened),
                    "pending_ns": pending,
                    "polls_per_s": round(rate, 3),
                },
            )
        )
    return Seen(findings, (), {"ran_on_main": len(found), "polls_per_s": round(rate, 3)})


LINT = Lint(
    name="exposure",
    sentence="a watched bottom half ran in main, yet a vCPU thread could have run it",
    threshold=Threshold(1, "/s"),
    why="bottom halves of main that vCPU threads run a second, over the whole recording; a near"
    " miss is a finding at any rate",
    needs="--all",
    evidence="its schedules and runs, and a vCPU thread's run of another one beside each",
    source="issue 2111; d759c951f3",
    check=check,
    qmp=False,
)
