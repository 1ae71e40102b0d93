"""What became of one instance and why, in prose with its evidence.

Whatever the recording does not show is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import find_rows
from qtrace.analysis.explain_wait import Behind, Runs, what_it_waited_behind
from qtrace.analysis.frames import Frames, Part, fold_all
from qtrace.analysis.instances import UNSEEN
from qtrace.analysis.losses import losses_of
from qtrace.analysis.overview import Overview
from qtrace.analysis.runs import run_at
from qtrace.analysis.stacks import frames_of, functions, poll_caller
from qtrace.analysis.verdicts import LOST
from qtrace.analysis.wording import times, who
from qtrace.trace.schema import COROUTINE, PARTIAL, TRUNCATED, UNREADABLE
from qtrace.units import show

# What the root of a chain that does not reach its thread's start tells.
MARKS = {
    COROUTINE: "in a coroutine, whose stack does not show who entered it",
    PARTIAL: "further out was not recorded",
    TRUNCATED: "further out was not copied",
    UNREADABLE: "further out could not be read",
}
WAYS = {"cancel": "cancelled it", "delete": "deleted it"}


def explain(
    trace: Frames, overview: Overview, instances: Mapping[int, Mapping[Any, Any]]
) -> list[str]:
    """Sentences about instances, each on a line: who scheduled it and in what, how long it
    waited and behind what, where it ran, how long, the verdict with its proof, and its rows.

    Args:
        trace: a recording, or what it is led past folds as; it is gone through once.
        overview: has seen all of it.
        instances: rows of ``instances`` by their numbers.

    Returns:
        A text for each.
    """
    cases = [_Case(trace, overview, number, one) for number, one in instances.items()]
    fold_all(trace, [_Cases(cases, overview)])
    return ["\n".join(_lines(case)) for case in cases]


def _lines(case: _Case) -> list[str]:
    return [
        f"{case.one['name'] or '?'}, instance {case.index} of {case.trace.path}",
        _scheduled(case),
        *_waited(case),
        *_ended(case),
        _verdict(case),
        _rows(case),
    ]


class _Case:
    """An instance, and what the recording shows of it besides its own row.

    Attributes:
        one: its row.
        run: its run (a row of ``runs``), if it has one; outer: the run around that.
        end_row: the row of its return.
        during: the run that its scheduler was in then.
        behind: what ran while it waited.
    """

    def __init__(
        self, trace: Frames, overview: Overview, index: int, one: Mapping[Any, Any]
    ) -> None:
        self.trace, self.overview, self.index, self.one = trace, overview, index, one
        self.run: dict[str, Any] | None = None
        self.outer: dict[str, Any] | None = None
        self.end_row: int | None = None
        self.during: dict[str, Any] | None = None
        self.behind: Behind | None = None
        if not pd.isna(one["scheduled_ns"]):
            until = overview.end_ns if pd.isna(one["ended_ns"]) else int(one["ended_ns"])
            self.behind = Behind(trace, overview, one, int(one["scheduled_ns"]), until)

    def add(self, part: Part, runs: Runs, since_ns: int, until_ns: int) -> None:
        """A part of the recording, with its own time."""
        if self.behind is not None:
            self.behind.add(part, runs)
            scheduled, tid = int(self.one["scheduled_ns"]), int(self.one["scheduled_by_tid"])
            if tid and since_ns < scheduled <= until_ns:
                moment = np.array([tid]), np.array([scheduled])
                at = int(run_at(part.runs, *moment, self.trace.all_losses)[0])
                self.during = _row(part.runs, at) if at >= 0 else None
        if self.one["end"] != "run" or pd.isna(self.one["ended_row"]):
            return
        row = int(self.one["ended_row"])
        at = runs.place(row)
        if at < 0:
            return
        self.run = _row(part.runs, at)
        if not pd.isna(self.run["outer"]):
            self.outer = _row(part.runs, int(self.run["outer"]))
        ends = part.durations
        found, _which = find_rows(ends["row"].to_numpy(np.int64), np.array([row]))
        if len(found):
            self.end_row = int(ends["end_row"].iloc[found[0]])

    @property
    def context(self) -> str:
        return f"`{self.one['context']}`" if self.one["context"] else "an unknown context"

    def when(self, time_ns: int) -> str:
        """Since the recording began."""
        return f"{(time_ns - self.overview.begin_ns) / 1e9:.6f} s"

    @property
    def actor(self) -> str:
        role = str(self.one["role"])
        unknown = "" if role not in ("", "other") else " of unknown role"
        return who(role, str(self.one["thread"]), int(self.one["tid"])) + unknown


class _Cases:
    """They are led past a recording together."""

    def __init__(self, cases: Sequence[_Case], overview: Overview) -> None:
        self._cases, self._unfinished = cases, overview.unfinished
        self._until = -1

    def add(self, part: Part) -> None:
        """What is the part's own."""
        runs = Runs(part, self._unfinished)
        since, self._until = self._until, int(part.events["time_ns"].iloc[-1])
        for case in self._cases:
            case.add(part, runs, since, self._until)


def _row(frame: pd.DataFrame, at: int) -> dict[str, Any]:
    return {str(key): value for key, value in frame.iloc[at].items()}


def _scheduled(case: _Case) -> str:
    one, trace = case.one, case.trace
    if pd.isna(one["scheduled_ns"]):
        lost = ", or was lost" if trace.lost_events else ""
        return (
            f"Its schedule is not in the recording: it was before the probes were armed{lost}. Who"
            f" scheduled it, and how long it waited in {case.context}, is not known."
        )
    at, tid = int(one["scheduled_ns"]), int(one["scheduled_by_tid"])
    if not tid:
        return (
            f"At {case.when(at)} it was seen pending in {case.context}; who had scheduled it is not"
            " known."
        )
    scheduler = who(str(one["scheduled_by_role"]), str(one["scheduled_by_thread"]), tid)
    line = (
        f"At {case.when(at)} {scheduler} scheduled it into {case.context}{_during(case, tid, at)}"
    )
    line += f": {_chain(one['scheduled_stack'])}." if one["scheduled_stack"] else "."
    if one["coalesced"]:
        again = times(int(one["coalesced"]))
        line += f" It was scheduled {again} more while it was pending, which inserts nothing."
    return line


def _during(case: _Case, tid: int, time_ns: int) -> str:
    """The bottom half and the QMP command that a thread was in then."""
    found = ""
    if case.during is not None and case.during["row"] != case.one["ended_row"]:
        found = f", inside {case.during['name']} (row {case.during['row']})"
    rows = case.trace.qmp_steps
    rows = rows[(rows["step"].isin(("begin", "end")) & (rows["tid"] == tid)).to_numpy()]
    before = rows[(rows["time_ns"] <= time_ns).to_numpy()]
    if len(before) and before["step"].iloc[-1] == "begin":
        found += f", for the QMP command {before['name'].iloc[-1]} (row {before['row'].iloc[-1]})"
    return found


def _waited(case: _Case) -> list[str]:
    one, behind = case.one, case.behind
    if behind is None:
        return []
    since, until = behind.since_ns, behind.until_ns
    if one["end"] == UNSEEN:
        return ["It was over when it was scheduled anew, but how it had ended was not seen."]
    if pd.isna(one["ended_ns"]):
        first = f"It was still pending when the recording ended, {show(until - since, 'ns')} later."
    else:
        first = f"It waited {show(until - since, 'ns')}."
    return [" ".join([first, *what_it_waited_behind(behind)])]


def _ended(case: _Case) -> list[str]:
    """Where it ran and for how long, or who took it off."""
    one = case.one
    if pd.isna(one["ended_ns"]):
        return []
    at = case.when(int(one["ended_ns"]))
    if one["end"] != "run":
        return [f"At {at} {case.actor} {WAYS[one['end']]}."]
    chain, poll, device = frames_of(one)
    where = ""
    caller = poll_caller(chain, poll)
    if one["verdict"] in ("nested-poll", "vcpu-poll") and caller:
        where = f" inside {chain[poll]}() of {caller}"
    if device >= 0:
        where += f", for a device access of the guest ({chain[device]})"
    if case.outer is not None:
        where += f", inside a run of {case.outer['name']} (row {case.outer['row']})"
    stack = f": {_chain(one['stack'])}" if chain else "; its stack could not be read"
    return [f"At {at} {case.actor} ran it{where}{stack}.", _took(case)]


def _took(case: _Case) -> str:
    """How long it ran."""
    trace, run = case.trace, case.run
    if run is not None and not pd.isna(run["end_ns"]):
        return f"It returned after {show(int(run['end_ns'] - run['time_ns']), 'ns')}."
    ended = "recording" if trace.exit is None else "target"
    lasted = case.overview.unfinished.get(int(case.one["ended_row"]))
    if lasted is not None:
        if lasted:
            return f"It had not returned {show(lasted, 'ns')} later, when the {ended} ended."
        return f"Whether it returned before the {ended} ended is not known."
    if trace.every or case.one["name"] in trace.header.get("returns", []):
        return "How long it ran is not known: its return was missed."
    return "How long it ran is not known: returns were not recorded (--all records them)."


def _verdict(case: _Case) -> str:
    one, verdict = case.one, str(case.one["verdict"])
    return f"Verdict {verdict}: {_proof(case, verdict)}." if one["name"] else f"Verdict {verdict}."


def _proof(case: _Case, verdict: str) -> str:
    one, trace = case.one, case.trace
    chain, poll, _device = frames_of(one)
    frame = f"{chain[poll]}()" if 0 <= poll < len(chain) else "its stack"
    row = "" if pd.isna(one["ended_row"]) else f" (row {int(one['ended_row'])})"
    proof = trace.proofs.get(case.index)
    if verdict == "stranded" and proof is not None:
        looks = trace.file.frame
        first, last = looks["time_ns"][looks["row"].isin(proof.rows)].to_numpy()
        return (
            f"{proof.sentence}; two looks {show(int(last - first), 'ns')} apart (rows"
            f" {proof.rows[0]} and {proof.rows[1]}) show the same wait, the last one at the end"
        )
    return {
        "main-loop": f"{frame} on the main thread dispatched it{row}",
        "nested-poll": f"the main thread ran it in {frame}, a nested event loop, not its main"
        f" loop{row}",
        "iothread": f"the IOThread that owns {case.context} ran it{row}",
        "vcpu-poll": f"a vCPU thread ran it with {frame} on its stack, not the main loop{row}",
        "foreign-poll": f"{case.context} is not this thread's own, and it ran it all the same{row}",
        "cancelled": f"it was taken off before it ran{row}",
        "deleted": f"it was taken off before it ran{row}",
        "pending": "the recording ended first, and nothing in it proves that it could not run",
        "inconclusive": f"{one['reason']}{_losses(case)}",
    }[verdict]


def _losses(case: _Case) -> str:
    """Which losses touch its life."""
    one = case.one
    if one["reason"] != LOST:
        return ""
    limits = np.iinfo(np.int64)
    born = limits.min if pd.isna(one["scheduled_ns"]) else int(one["scheduled_ns"])
    died = limits.max if pd.isna(one["ended_ns"]) else int(one["ended_ns"])
    losses = losses_of(case.trace.file, one["name"] in case.trace.watched)
    touching = losses[((losses["since_ns"] <= died) & (losses["until_ns"] >= born)).to_numpy()]
    return f", up to {touching['count'].sum():,} of them"


def _rows(case: _Case) -> str:
    one, trace = case.one, case.trace
    parts = []
    for key, kind in (("scheduled_row", "schedule"), ("ended_row", str(one["end"]))):
        if not pd.isna(one[key]):
            parts.append(f"{int(one[key])} ({kind})")
    if case.end_row is not None:
        parts.append(f"{case.end_row} (return)")
    proof = trace.proofs.get(case.index)
    if proof is not None:
        parts += [f"{row} (blocked)" for row in proof.rows]
    return f"Rows {', '.join(parts)} of {trace.path}."


def _chain(stack: str) -> str:
    """Leaf first; in words what a mark at its root says."""
    chain = functions(stack)
    mark = MARKS.get(chain[-1], "")
    shown = " <- ".join(chain[:-1] if mark else chain)
    return f"{shown} ({mark})" if mark else shown
