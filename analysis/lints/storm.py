"""A bottom half that schedules itself again from its own callback, at a high rate."""

from __future__ import annotations

import numpy as np

from qtrace.analysis.frames import Frames
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import busiest, place_of
from qtrace.analysis.runs import self_made
from qtrace.analysis.timing import busiest_window
from qtrace.analysis.wording import thread_of

WINDOW_NS = 100_000_000


def check(trace: Frames, threshold: Threshold) -> Seen:
    """Runs that were scheduled inside a run of the same bottom half, in the busiest 0.1 s.

    The same means callback and argument. What schedules itself and takes that back before it
    returns (thread_pool_completion_bh() does) never runs for it, and an idle bottom half is
    held back by QEMU itself: neither counts.
    """
    runs = trace.runs
    again = self_made(runs, generations=1)
    kept = runs[again]
    findings = []
    for _key, part in kept.groupby(["name", "context", "callback", "opaque"], observed=True):
        at, _count, rate = busiest_window(part["time_ns"].to_numpy(np.int64), WINDOW_NS)
        if rate < threshold.value:
            continue
        one = part.iloc[at]
        findings.append(
            Finding(
                "storm",
                trace,
                f"{one['name']} (`{one['context'] or '?'}`) scheduled itself again {len(part):,}"
                f" times on {thread_of(one)}, at up to {rate:,.0f}/s",
                **place_of(one),
                **busiest(trace.instances, part, at, rate),
            )
        )
    return Seen(findings, (), {"self_scheduled": int(again.sum())})


LINT = Lint(
    name="storm",
    sentence="a bottom half schedules itself again from its own callback, at a high rate",
    threshold=Threshold(10_000, "/s"),
    why="self-made runs a second in the busiest 0.1 s; virtio-net's tx_bh may do some thousand",
    needs="--all",
    evidence="the first schedules and runs of the busiest moment",
    source="the 10 million rounds of the RFC's thread (June 2024); 7838c67f22, b7a745dc33",
    check=check,
    qmp=False,
)
