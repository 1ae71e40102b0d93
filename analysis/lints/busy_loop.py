"""An event loop that keeps itself busy: its bottom halves only schedule each other."""

from __future__ import annotations

from qtrace.analysis.frames import Frames, Part
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import Bursts, busiest, place_of, with_schedules
from qtrace.analysis.lints.storm import WINDOW_NS
from qtrace.analysis.qemu_facts import COMPLETIONS
from qtrace.analysis.runs import self_made
from qtrace.analysis.wording import thread_of

SHARE = 0.9


class BusyLoop:
    """A context's busiest 0.1 s in which nine runs of ten were self-made.

    Self-made is a run that was scheduled inside a run of the same bottom half, or of one that
    was itself scheduled inside a run of it (two that wake each other): no request, no other
    thread and no file descriptor kept the loop going. File descriptors that are always ready
    (75dcb4d790) do not show in a trace of bottom halves.
    """

    def __init__(self, trace: Frames, threshold: Threshold) -> None:
        self._trace = trace
        self._bursts = Bursts(("context", "tid"), WINDOW_NS, threshold.value)
        self._self_made = 0

    def add(self, part: Part) -> None:
        """See ``Fold``."""
        runs = part.runs
        # A request whose completion submits the next one keeps no argument for long, but malloc()
        # hands the same address out again: with completions only the direct case is certain.
        own = self_made(runs, generations=1)
        own = own | (self_made(runs, generations=2) & ~runs["name"].isin(COMPLETIONS).to_numpy())
        own &= part.own_runs
        self._self_made += int(own.sum())
        every = part.runs.loc[part.own_runs, ["context", "tid", "time_ns"]]
        self._bursts.add(with_schedules(part, own), part, every)

    def end(self) -> Seen:
        """See ``Fold``."""
        findings = []
        for key, burst in self._bursts.found():
            context, count, held = str(key[0]), burst.held, burst.others
            if count < SHARE * held:
                continue
            kinds = burst.rows["name"].iloc[:count].astype(object).value_counts()
            names = [str(name) for name in kinds.index]
            one = burst.rows.iloc[0]
            findings.append(
                Finding(
                    "busy-loop",
                    self._trace,
                    f"{thread_of(one)} spun in `{context or '?'}`: {count / held:.0%} of its"
                    f" {held:,} runs in 0.1 s were {' and '.join(names[:2])} scheduling themselves",
                    **place_of(one) | {"name": names[0]},
                    **busiest(burst, self._bursts.counts[key]),
                    facts={"share": round(float(count / held), 4), "names": names},
                )
            )
        return Seen(findings, (), {"self_made": self._self_made})


LINT = Lint(
    name="busy-loop",
    sentence="an event loop keeps itself busy: its bottom halves only schedule each other",
    threshold=Threshold(10_000, "/s"),
    why="self-made runs a second in the busiest 0.1 s; nine of ten runs there must be",
    needs="--all",
    evidence="the first schedules and runs of the busiest moment",
    source="21891a5a30 (QEMU's own warning, dropped because it named no cause); b7a745dc33",
    fold=BusyLoop,
    qmp=False,
)
