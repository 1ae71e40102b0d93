"""A bottom half that schedules itself again from its own callback, at a high rate."""

from __future__ import annotations

from qtrace.analysis.frames import Frames, Part
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import Bursts, busiest, place_of, with_schedules
from qtrace.analysis.runs import self_made
from qtrace.analysis.wording import thread_of

WINDOW_NS = 100_000_000


class Storm:
    """Runs that were scheduled inside a run of the same bottom half, in the busiest 0.1 s.

    The same means callback and argument. What schedules itself and takes that back before it
    returns (thread_pool_completion_bh() does) never runs for it, and an idle bottom half is
    held back by QEMU itself: neither counts.
    """

    def __init__(self, trace: Frames, threshold: Threshold) -> None:
        self._trace = trace
        keys = ("name", "context", "callback", "opaque")
        self._bursts = Bursts(keys, WINDOW_NS, threshold.value)
        self._again = 0

    def add(self, part: Part) -> None:
        """See ``Fold``."""
        again = self_made(part.runs, generations=1) & part.own_runs
        self._again += int(again.sum())
        what = part.runs.loc[again, ["callback", "opaque"]]
        kept = with_schedules(part, again)
        callback, opaque = what["callback"].to_numpy(), what["opaque"].to_numpy()
        self._bursts.add(kept.assign(callback=callback, opaque=opaque), part)

    def end(self) -> Seen:
        """See ``Fold``."""
        findings = []
        for key, burst in self._bursts.found():
            one, count = burst.rows.iloc[0], self._bursts.counts[key]
            findings.append(
                Finding(
                    "storm",
                    self._trace,
                    f"{one['name']} (`{one['context'] or '?'}`) scheduled itself again {count:,}"
                    f" times on {thread_of(one)}, at up to {burst.rate:,.0f}/s",
                    **place_of(one),
                    **busiest(burst, count),
                )
            )
        return Seen(findings, (), {"self_scheduled": self._again})


LINT = Lint(
    name="storm",
    sentence="a bottom half schedules itself again from its own callback, at a high rate",
    threshold=Threshold(10_000, "/s"),
    why="self-made runs a second in the busiest 0.1 s; virtio-net's tx_bh may do some thousand",
    needs="--all",
    evidence="the first schedules and runs of the busiest moment",
    source="the 10 million rounds of the RFC's thread (June 2024); 7838c67f22, b7a745dc33",
    fold=Storm,
    qmp=False,
)
