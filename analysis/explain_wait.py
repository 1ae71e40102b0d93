"""Why a bottom half waited: what threads did while it was pending."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import Numbers, filled, find_rows
from qtrace.analysis.frames import Frames, Part
from qtrace.analysis.overview import Overview
from qtrace.analysis.qemu_facts import MAIN_CONTEXTS
from qtrace.analysis.stacks import frames_of, poll_caller
from qtrace.analysis.verdicts import main_tid
from qtrace.analysis.wording import capital, times, who
from qtrace.trace.details import detail_column
from qtrace.units import show

# Ran by whoever polled, not by a loop.
NESTED = ("nested-poll", "vcpu-poll", "foreign-poll")
# As many kinds of bottom halves, and callers of aio_poll(), as are named.
NAMED = 3


class Runs:
    """A part's own runs, to be asked what ran between two moments.

    One that had not returned when the recording ended lasted as long as is certain.
    """

    def __init__(self, part: Part, unfinished: Mapping[int, int]) -> None:
        self.at = np.flatnonzero(part.own_runs)
        runs = part.runs.take(self.at)
        self.row = runs["row"].to_numpy(np.int64)
        self.began = runs["time_ns"].to_numpy(np.int64)
        self.ended = filled(runs["end_ns"]).copy()
        places, which = find_rows(self.row, np.array(list(unfinished), np.int64))
        lasted = np.array(list(unfinished.values()), np.int64)
        self.ended[places] = self.began[places] + lasted[which]
        # Until when the thread of any run so far was in one.
        self._reach = np.maximum.accumulate(np.maximum(self.ended, self.began))

    def place(self, row: int) -> int:
        """Where in the part's ``runs`` the one of this row is; -1 for nowhere."""
        found = np.flatnonzero(self.row == row)
        return int(self.at[found[0]]) if len(found) else -1

    def between(self, since_ns: int, until_ns: int) -> Numbers:
        """Which share a moment with this time; positions in ``at``. One whose end is not known
        does so if it began in it."""
        first = int(self._reach.searchsorted(since_ns))
        last = int(self.began.searchsorted(until_ns))
        began, ended = self.began[first:last], self.ended[first:last]
        inside = (ended > since_ns) | ((ended < 0) & (began >= since_ns))
        return first + np.flatnonzero(inside)


class Ran:
    """Some runs, in time order, that shared a moment with a wait."""

    def __init__(self) -> None:
        self.count = self.covered_ns = self.nested = 0
        self.names: Counter[str] = Counter()
        self.callers: Counter[str] = Counter()
        self.first: dict[str, Any] = {}
        self.longest: dict[str, Any] = {}
        self._until = 0

    def add(self, runs: pd.DataFrame, instances: pd.DataFrame) -> None:
        """The next ones.

        Args:
            runs: with ``since`` when, and ``overlap``, for how long (nanoseconds; -1 where the end
                is not known); ``took``, the whole run.
            instances: those that ran.
        """
        if runs.empty:
            return
        self.first = self.first or {str(key): value for key, value in runs.iloc[0].items()}
        self.count += len(runs)
        self._add_covered(runs[(runs["overlap"] > 0).to_numpy()])
        names = runs["name"].astype(object).value_counts(sort=False)
        self.names.update({str(name): int(count) for name, count in names.items()})
        longest = runs.iloc[int(runs["overlap"].argmax())]
        if not self.longest or longest["overlap"] > self.longest["overlap"]:
            self.longest = {str(key): value for key, value in longest.items()}
        nested = instances[instances["verdict"].isin(NESTED).to_numpy()]
        self.nested += len(nested)
        places = nested[["stack", "deciding_frame"]].astype(object)
        keys = places.groupby(["stack", "deciding_frame"], dropna=False, sort=False)
        for one in keys.size().reset_index(name="n").to_dict("records"):
            chain, poll, _device = frames_of(one)
            self.callers[poll_caller(chain, poll) or "?"] += int(one["n"])

    def _add_covered(self, known: pd.DataFrame) -> None:
        """Time in which any of these ran: one inside another counts once."""
        began = known["since"].to_numpy(np.int64)
        ended = began + known["overlap"].to_numpy(np.int64)
        reach = np.maximum.accumulate(np.append(self._until, ended))
        self.covered_ns += int((ended - np.maximum(began, reach[:-1])).clip(min=0).sum())
        self._until = int(reach[-1])

    @property
    def polls(self) -> str:
        """How many of these ran inside somebody's aio_poll(), and who called that."""
        if not self.nested:
            return ""
        names = ", ".join(name for name, _count in self.callers.most_common(NAMED))
        many = "" if self.nested == self.count else f" {self.nested:,} of them"
        return f",{many} inside aio_poll() of {names}"


class Behind:
    """What ran between an instance's schedule and its end.

    Attributes:
        one: a row of ``instances``.
        since_ns, until_ns: between its schedule and its end.
        home: the thread that owns its context, None where the recording does not tell.
        own: what that ran; others: what others ran of the same context, by thread.
    """

    def __init__(
        self, trace: Frames, overview: Overview, one: Mapping[Any, Any], since_ns: int,
        until_ns: int,
    ) -> None:  # fmt: skip
        self.trace, self.overview, self.one = trace, overview, one
        self.since_ns, self.until_ns = since_ns, until_ns
        self.home = _home_thread(trace, overview, str(one["context"]), int(one["ctx"]))
        self.own = Ran()
        self.others: dict[int, Ran] = {}

    def add(self, part: Part, known: Runs) -> None:
        """A part's own runs."""
        since, until, one = self.since_ns, self.until_ns, self.one
        at = known.between(since, until)
        if not len(at):
            return
        runs = part.runs.take(known.at[at])
        began, ended = known.began[at], known.ended[at]
        kept = np.ones(len(at), np.bool_)
        if one["end"] == "run":
            kept = known.row[at] != int(one["ended_row"])
            # One inside which it ran was not in its way.
            around = (runs["tid"] == one["tid"]).to_numpy() & (ended >= until) & (began < until)
            kept &= ~around
        overlap = np.where(ended >= 0, np.minimum(ended, until) - np.maximum(began, since), -1)
        runs = runs.assign(took=ended - began, since=np.maximum(began, since), overlap=overlap)
        runs = runs[kept]
        self._add(self.own, part, runs[(runs["tid"] == self.home).to_numpy()])
        others = (runs["tid"] != self.home) & (runs["context"] == one["context"])
        for tid, some in runs[others.to_numpy()].groupby("tid", sort=False):
            self._add(self.others.setdefault(int(str(tid)), Ran()), part, some)

    def _add(self, ran: Ran, part: Part, runs: pd.DataFrame) -> None:
        at = filled(runs["instance"])
        ran.add(runs, part.instances.take(at[at >= 0]))


def _home_thread(trace: Frames, overview: Overview, context: str, ctx: int) -> int | None:
    """The thread whose loop owns a context, None when the recording does not tell."""
    if context in MAIN_CONTEXTS:
        return main_tid(trace.file)
    return overview.runners.of(context, ctx)


def what_it_waited_behind(behind: Behind) -> list[str]:
    """Sentences about the thread that owns the context of an instance, about others that ran
    bottom halves of it, and about what that thread was seen to sleep in."""
    trace, one = behind.trace, behind.one
    sentences = []
    if behind.home is not None:
        sentences += _of_owner(behind, behind.home)
    elif trace.every:
        sentences.append("Which thread owns its context the recording does not show.")
    for tid, ran in behind.others.items():
        thread = who(str(ran.first["role"]), str(ran.first["thread"]), tid)
        sentences.append(
            f"{capital(thread)} ran {_count(ran.count)} of `{one['context'] or '?'}` meanwhile"
            f"{ran.polls}."
        )
    if not trace.every:
        sentences.append(
            "What else ran meanwhile is not known: only watched bottom halves were recorded"
            " (--all records every one)."
        )
    return sentences + _looks(trace, one, behind.since_ns, behind.until_ns)


def _of_owner(behind: Behind, tid: int) -> list[str]:
    trace, ran, context = behind.trace, behind.own, str(behind.one["context"])
    known = behind.overview.threads.get(tid)
    thread = who(known[1], known[0], tid) if known is not None else f"thread {tid}"
    if not ran.count:
        what = "no other bottom half" if trace.every else "no other watched bottom half"
        return [f"{capital(thread)}, which owns `{context}`, ran {what} meanwhile."]
    busy = show(ran.covered_ns, "ns")
    names = [f"{name} ({times(count)})" for name, count in ran.names.most_common(NAMED)]
    more = f" and {len(ran.names) - NAMED} more kinds" if len(ran.names) > NAMED else ""
    sentences = [
        f"{capital(thread)}, which owns `{context}`, ran {_count(ran.count)} meanwhile, for"
        f" {busy}{ran.polls}: {', '.join(names)}{more}."
    ]
    longest = ran.longest
    if longest["overlap"] * 2 >= behind.until_ns - behind.since_ns:
        where = (
            f"of the same context: `{context}` is served one after the other"
            if longest["context"] == context
            else f"of `{longest['context'] or '?'}`, which kept that thread from `{context}`"
        )
        sentences.append(
            f"It waited behind {longest['name']} {where}; that ran for"
            f" {show(int(longest['took']), 'ns')} (row {longest['row']})."
        )
    return sentences


def _looks(trace: Frames, one: Mapping[Any, Any], since: int, until: int) -> list[str]:
    """What its recorder saw in its way while it stayed pending."""
    events = trace.file.frame
    about = (events["event"] == "blocked").to_numpy()
    for column in ("callback", "opaque"):
        about = about & (events[column] == one[column]).to_numpy()
    looks = events[about & events["time_ns"].between(since, until).to_numpy()]
    if looks.empty:
        return []
    rows = looks["row"].to_numpy()
    which = f"row {rows[0]}" if len(rows) == 1 else f"rows {rows[0]} to {rows[-1]}"
    told = detail_column(looks["detail"].iloc[-1:], "sentence", "nothing was seen")[0]
    said = "" if one["verdict"] == "stranded" else f": {told}"
    return [f"What was in its way was looked at {times(len(looks))} ({which}){said}."]


def _count(number: int) -> str:
    return "1 bottom half" if number == 1 else f"{number:,} bottom halves"
