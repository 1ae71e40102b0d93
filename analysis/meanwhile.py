"""What threads did while a bottom half was pending: what it waited behind."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qtrace.analysis.occurrences import times, who
from qtrace.analysis.stacks import functions, poll_caller
from qtrace.analysis.verdicts import MAIN_CONTEXTS, main_tid
from qtrace.units import show

if TYPE_CHECKING:
    from qtrace.analysis.traces import AnalysedTrace

# Ran by whoever polled, not by a loop.
NESTED = ("nested-poll", "vcpu-poll", "foreign-poll")
# As many kinds of bottom halves, and callers of aio_poll(), as are named.
NAMED = 3


def home_thread(trace: AnalysedTrace, context: str, ctx: int) -> int | None:
    """The thread whose loop owns a context, None when the recording does not tell."""
    if context in MAIN_CONTEXTS:
        return main_tid(trace.trace)
    contexts = trace.contexts
    own = contexts[((contexts["context"] == context) & (contexts["ctx"] == ctx)).to_numpy()]
    runner = own["runner"].dropna()
    return int(runner.iloc[0]) if len(runner) else None


def meanwhile(trace: AnalysedTrace, one: dict[str, Any], since_ns: int, until_ns: int) -> list[str]:
    """Sentences about the thread that owns the context of an instance, about others that ran
    bottom halves of it, and about what that thread was seen to sleep in.

    Args:
        one: a row of ``instances``.
        since_ns, until_ns: between its schedule and its end.
    """
    runs = _overlapping(trace, one, since_ns, until_ns)
    home = home_thread(trace, str(one["context"]), int(one["ctx"]))
    sentences = []
    if home is not None:
        own = runs[(runs["tid"] == home).to_numpy()]
        sentences += _of_owner(trace, own, home, str(one["context"]), until_ns - since_ns)
    elif trace.every:
        sentences.append("Which thread owns its context the recording does not show.")
    others = runs[((runs["tid"] != home) & (runs["context"] == one["context"])).to_numpy()]
    for tid, part in others.groupby("tid", sort=False):
        thread = _thread(part.iloc[0], int(str(tid)))
        sentences.append(
            f"{_capital(thread)} ran {_count(len(part))} of `{one['context'] or '?'}` meanwhile"
            f"{_polls(trace, part)}."
        )
    if not trace.every:
        sentences.append(
            "What else ran meanwhile is not known: only watched bottom halves were recorded"
            " (--all records every one)."
        )
    return sentences + _looks(trace, one, since_ns, until_ns)


def _overlapping(trace: AnalysedTrace, one: dict[str, Any], since: int, until: int) -> pd.DataFrame:
    """Runs of others that share a moment with this time: ``since`` when, and ``overlap``, for how
    long (nanoseconds; -1 where the end is not known); ``took``, the whole run."""
    runs = trace.runs
    began = runs["time_ns"].to_numpy(np.int64)
    ended = runs["end_ns"].to_numpy(np.int64).copy()
    open_still = trace.unfinished
    at = open_still.index.to_numpy(np.int64)
    ended[at] = began[at] + open_still.to_numpy(np.int64)
    inside = (began < until) & ((ended > since) | ((ended < 0) & (began >= since)))
    if one["end"] == "run":
        inside = inside & (runs["row"] != one["ended_row"]).to_numpy()
        # One inside which it ran was not in its way.
        around = (runs["tid"] == one["tid"]).to_numpy() & (ended >= until) & (began < until)
        inside = inside & ~around
    overlap = np.where(ended >= 0, np.minimum(ended, until) - np.maximum(began, since), -1)
    return runs.assign(took=ended - began, since=np.maximum(began, since), overlap=overlap)[inside]


def _of_owner(
    trace: AnalysedTrace, runs: pd.DataFrame, tid: int, context: str, wait_ns: int
) -> list[str]:
    own = trace.threads[(trace.threads["tid"] == tid).to_numpy()]
    thread = _thread(own.iloc[0], tid) if len(own) else f"thread {tid}"
    if runs.empty:
        what = "no other bottom half" if trace.every else "no other watched bottom half"
        return [f"{_capital(thread)}, which owns `{context}`, ran {what} meanwhile."]
    busy = show(_covered(runs), "ns")
    kinds = runs["name"].astype(object).value_counts()
    names = [f"{name} ({times(int(n))})" for name, n in kinds.head(NAMED).items()]
    more = f" and {len(kinds) - NAMED} more kinds" if len(kinds) > NAMED else ""
    sentences = [
        f"{_capital(thread)}, which owns `{context}`, ran {_count(len(runs))} meanwhile, for"
        f" {busy}{_polls(trace, runs)}: {', '.join(names)}{more}."
    ]
    longest = runs.iloc[int(runs["overlap"].argmax())]
    if longest["overlap"] * 2 >= wait_ns:
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


def _covered(runs: pd.DataFrame) -> int:
    """Nanoseconds in which any of these ran: one inside another counts once."""
    known = runs[(runs["overlap"] > 0).to_numpy()]
    began = known["since"].to_numpy(np.int64)
    ended = began + known["overlap"].to_numpy(np.int64)
    before = np.maximum.accumulate(np.append(0, ended[:-1])) if len(ended) else ended
    return int((ended - np.maximum(began, before)).clip(min=0).sum())


def _polls(trace: AnalysedTrace, runs: pd.DataFrame) -> str:
    """How many of these ran inside somebody's aio_poll(), and who called that."""
    at = runs["instance"].to_numpy(np.int64)
    known = trace.instances.take(at[at >= 0])
    nested = known[known["verdict"].isin(NESTED).to_numpy()]
    if nested.empty:
        return ""
    keys = nested.groupby(["stack", "deciding_frame"], observed=True).size().reset_index(name="n")
    callers: Counter[str] = Counter()
    for stack, poll, count in keys.to_numpy(object):
        callers[poll_caller(functions(stack), poll) or "?"] += int(count)
    names = ", ".join(name for name, _count in callers.most_common(NAMED))
    many = "" if len(nested) == len(runs) else f" {len(nested):,} of them"
    return f",{many} inside aio_poll() of {names}"


def _looks(trace: AnalysedTrace, one: dict[str, Any], since: int, until: int) -> list[str]:
    """What its recorder saw in its way while it stayed pending."""
    events = trace.events
    about = (events["event"] == "blocked").to_numpy()
    for column in ("callback", "opaque"):
        about = about & (events[column] == one[column]).to_numpy()
    looks = events[about & events["time_ns"].between(since, until).to_numpy()]
    if looks.empty:
        return []
    rows = looks["row"].to_numpy()
    which = f"row {rows[0]}" if len(rows) == 1 else f"rows {rows[0]} to {rows[-1]}"
    said = "" if one["verdict"] == "stranded" else f": {_said(str(looks['detail'].iloc[-1]))}"
    return [f"What was in its way was looked at {times(len(looks))} ({which}){said}."]


def _said(detail: str) -> str:
    """The recorder's own words."""
    return str(json.loads(detail).get("sentence", "nothing was seen"))


def _thread(row: Any, tid: int) -> str:
    return who(str(row["role"]), str(row["thread"]), tid)


def _count(number: int) -> str:
    return "1 bottom half" if number == 1 else f"{number:,} bottom halves"


def _capital(text: str) -> str:
    return text if text.startswith("vCPU") else text[:1].upper() + text[1:]
