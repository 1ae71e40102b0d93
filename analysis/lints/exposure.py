"""A watched bottom half ran in main, yet a vCPU thread could have run it: the race is open."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import Numbers, filled
from qtrace.analysis.frames import Frames, Part
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import Groups, counted, own_instances, place_of
from qtrace.analysis.losses import disturbed
from qtrace.analysis.runs import on_vcpus
from qtrace.analysis.wording import times
from qtrace.units import show

COLUMNS = ("name", "context", "tid", "thread", "role", "scheduled_ns", "ended_ns", "wait_ns",
           "scheduled_row", "ended_row")  # fmt: skip


class Exposure:
    """Watched instances that ran on the main thread, beside the polls of vCPU threads.

    Two things are told apart. A near miss: while it was pending, a vCPU thread ran a bottom
    half of the main context inside aio_poll(). And the open window: it was scheduled inside a
    bottom half of the main loop and ran in a later round of it, so that it was pending while
    the main thread gave up the BQL for ppoll() (util/main-loop.c, since d759c951f3), which is
    when a vCPU thread gets into aio_poll(); and vCPU threads were seen to do that.
    """

    def __init__(self, trace: Frames, threshold: Threshold) -> None:
        self._trace, self._threshold = trace, threshold
        self._polls = _Polls()
        self._first_ns = self._last_ns = 0
        self._ran: Counter[str] = Counter()
        self._pending: Counter[str] = Counter()
        # Near misses, and those that crossed the main loop's ppoll().
        self._missed = Groups(("name",), "wait_ns", ("scheduled_row", "ended_row"))
        self._opened = Groups(("name",), "wait_ns", ("scheduled_row", "ended_row"))

    def add(self, part: Part) -> None:
        """See ``Fold``."""
        times = part.events["time_ns"]
        self._first_ns = self._first_ns or int(times.iloc[0])
        self._last_ns = int(times.iloc[-1])
        self._polls.begin(part)
        found = self._safe(part)
        first, before, after = self._polls.at(filled(found["scheduled_ns"]))
        misses = self._polls.until(filled(found["ended_ns"])) - first
        found = found.assign(before=before, after=after)
        self._ran += counted(found["name"])
        self._missed.add(found[misses > 0])
        opened = found[found["across"].to_numpy(np.bool_)]
        self._opened.add(opened)
        for name, own in opened.groupby("name", observed=True, sort=False):
            self._pending[str(name)] += int(own["wait_ns"].sum())
        self._polls.end(part)

    def _safe(self, part: Part) -> pd.DataFrame:
        instances, runs = part.instances, part.runs
        safe = instances["name"].isin(self._trace.watched).to_numpy()
        safe = safe & (instances["context"] == "main").to_numpy()
        safe = safe & (instances["verdict"].isin(("main-loop", "nested-poll")).to_numpy())
        scheduled, ended = filled(instances["scheduled_ns"]), filled(instances["ended_ns"])
        safe = safe & (scheduled >= 0) & ~disturbed(scheduled, ended, self._trace.losses)
        across = np.zeros(len(instances), np.bool_)
        within = (runs["parent"].notna() & runs["instance"].notna()).to_numpy()
        across[filled(runs["instance"])[within]] = True
        across = across & ((instances["verdict"] == "main-loop").to_numpy())
        return own_instances(part, safe, COLUMNS).assign(across=across[safe & part.own])

    def end(self) -> Seen:
        """See ``Fold``."""
        rate = self._polls.count * 1e9 / max(self._last_ns - self._first_ns, 1)
        missed = {str(group.worst["name"]): group for group in self._missed.groups()}
        opened = {str(group.worst["name"]): group for group in self._opened.groups()}
        findings = []
        for name, ran in self._ran.items():
            misses, crossed = missed.get(name), opened.get(name)
            shown = misses or crossed
            if shown is None or (misses is None and rate < self._threshold.value):
                continue
            one = shown.worst
            # Where no poll was caught in between, the one before it shows that vCPU threads do.
            near = [row["before" if misses is None else "after"] for row in shown.shown]
            rows = {*shown.rows, *(int(row) for row in near if row >= 0)}
            pending, count = self._pending[name], crossed.count if crossed else 0
            told = (
                f"{times(misses.count)} a vCPU thread ran bottom halves of `main` while it was"
                " pending"
                if misses is not None
                else f"vCPU threads ran {rate:,.0f} bottom halves of `main` a second in aio_poll()"
            )
            findings.append(
                Finding(
                    "exposure",
                    self._trace,
                    f"the race of {name} is open: it ran on the main thread {times(ran)}, was"
                    f" pending across the main loop's ppoll() in {count:,} of them"
                    f" ({show(pending, 'ns')} in all), and {told}",
                    **place_of(one),
                    time_ns=int(one["ended_ns"]),
                    value=rate,
                    unit="/s",
                    rows=tuple(sorted(rows)),
                    count=ran,
                    instance=one["index"],
                    facts={
                        "near_misses": misses.count if misses else 0,
                        "crossed_ppoll": count,
                        "pending_ns": pending,
                        "polls_per_s": round(rate, 3),
                    },
                )
            )
        facts = {"ran_on_main": self._ran.total(), "polls_per_s": round(rate, 3)}
        return Seen(findings, (), facts)


class _Polls:
    """The runs of the main context inside aio_poll() on vCPU threads.

    Attributes:
        count: so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._time = self._row = np.empty(0, np.int64)
        self._last = -1
        # Of moments at which something was scheduled that was pending at the end of the last part:
        # how many there had been, the row of the last one, and of the next one (-1: none yet).
        self._known: dict[int, tuple[int, int, int]] = {}

    def begin(self, part: Part) -> None:
        """Those of the part."""
        polled = on_vcpus(part.runs, part.own_runs)
        polled = polled[(polled["context"] == "main").to_numpy()]
        self._time = polled["time_ns"].to_numpy(np.int64)
        self._row = polled["row"].to_numpy(np.int64)
        if len(self._row):
            next_row = int(self._row[0])
            self._known = {
                at: (count, before, next_row if after < 0 else after)
                for at, (count, before, after) in self._known.items()
            }

    def at(self, times: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """How many there had been at these moments, the row of the last one and of the next one."""
        first = self._time.searchsorted(times, side="right")
        before = np.concatenate([[self._last], self._row])[first]
        after = np.append(self._row, -1)[first]
        found = np.stack([first + self.count, before, after])
        for place, time_ns in enumerate(times.tolist()):
            if time_ns in self._known:
                found[:, place] = self._known[time_ns]
        return found[0], found[1], found[2]

    def until(self, times: Numbers) -> Numbers:
        """How many there had been before these moments, which are in this part."""
        found: Numbers = self.count + self._time.searchsorted(times)
        return found

    def end(self, part: Part) -> None:
        """What the next part may ask for."""
        columns = self.at(part.since)
        told = zip(*(column.tolist() for column in columns), strict=True)
        self._known = dict(zip(part.since.tolist(), told, strict=True))
        self.count += len(self._time)
        self._last = int(self._row[-1]) if len(self._row) else self._last


LINT = Lint(
    name="exposure",
    sentence="a watched bottom half ran in main, yet a vCPU thread could have run it",
    threshold=Threshold(1, "/s"),
    why="bottom halves of main that vCPU threads run a second, over the whole recording; a near"
    " miss is a finding at any rate",
    needs="--all",
    evidence="its schedules and runs, and a vCPU thread's run of another one beside each",
    source="issue 2111; d759c951f3",
    fold=Exposure,
    qmp=False,
)
