"""Why a bottom half waited: what threads did while it was pending."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames
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


def home_thread(trace: Frames, context: str, ctx: int) -> int | None:
    """The thread whose loop owns a context, None when the recording does not tell."""
    if context in MAIN_CONTEXTS:
        return main_tid(trace.file)
    contexts = trace.contexts
    own = contexts[((contexts["context"] == context) & (contexts["ctx"] == ctx)).to_numpy()]
    runner = own["runner"].dropna()
    return int(runner.iloc[0]) if len(runner) else None


def what_it_waited_behind(
    trace: Frames, one: dict[str, Any], since_ns: int, until_ns: int
) -> list[str]:
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
            f"{capital(thread)} ran {_count(len(part))} of `{one['context'] or '?'}` meanwhile"
            f"{_polls(trace, part)}."
        )
    if not trace.every:
        sentences.append(
            "What else ran meanwhile is not known: only watched bottom halves were recorded"
            " (--all records every one)."
        )
    return sentences + _looks(trace, one, since_ns, until_ns)


def _overlapping(trace: Frames, one: dict[str, Any], since: int, until: int) -> pd.DataFrame:
    """Runs of others that share a moment with this time: ``since`` when, and ``overlap``, for how
    long (nanoseconds; -1 where the end is not known); ``took``, the whole run."""
    runs = trace.runs
    began = runs["time_ns"].to_numpy(np.int64)
    ended = filled(runs["end_ns"])
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


def _of_owner(trace: Frames, runs: pd.DataFrame, tid: int, context: str, wait_ns: int) -> list[str]:
    own = trace.threads[(trace.threads["tid"] == tid).to_numpy()]
    thread = _thread(own.iloc[0], tid) if len(own) else f"thread {tid}"
    if runs.empty:
        what = "no other bottom half" if trace.every else "no other watched bottom half"
        return [f"{capital(thread)}, which owns `{context}`, ran {what} meanwhile."]
    busy = show(_covered(runs), "ns")
    kinds = runs["name"].astype(object).value_counts()
    names = [f"{name} ({times(int(n))})" for name, n in kinds.head(NAMED).items()]
    more = f" and {len(kinds) - NAMED} more kinds" if len(kinds) > NAMED else ""
    sentences = [
        f"{capital(thread)}, which owns `{context}`, ran {_count(len(runs))} meanwhile, for"
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


def _polls(trace: Frames, runs: pd.DataFrame) -> str:
    """How many of these ran inside somebody's aio_poll(), and who called that."""
    at = filled(runs["instance"])
    known = trace.instances.take(at[at >= 0])
    nested = known[known["verdict"].isin(NESTED).to_numpy()]
    if nested.empty:
        return ""
    places = ["stack", "deciding_frame"]
    keys = nested.groupby(places, observed=True, dropna=False).size().reset_index(name="n")
    callers: Counter[str] = Counter()
    for one in keys.to_dict("records"):
        chain, poll, _device = frames_of(one)
        callers[poll_caller(chain, poll) or "?"] += int(one["n"])
    names = ", ".join(name for name, _count in callers.most_common(NAMED))
    many = "" if len(nested) == len(runs) else f" {len(nested):,} of them"
    return f",{many} inside aio_poll() of {names}"


def _looks(trace: Frames, one: dict[str, Any], since: int, until: int) -> list[str]:
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
    told = detail_column(looks["detail"].iloc[-1:], "sentence", "nothing was seen")[0]
    said = "" if one["verdict"] == "stranded" else f": {told}"
    return [f"What was in its way was looked at {times(len(looks))} ({which}){said}."]


def _thread(row: Any, tid: int) -> str:
    return who(str(row["role"]), str(row["thread"]), tid)


def _count(number: int) -> str:
    return "1 bottom half" if number == 1 else f"{number:,} bottom halves"
