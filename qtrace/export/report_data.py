"""What the HTML report shows of a recording, as JSON, however long the recording was.

Times are nanoseconds since the recording began. Runs and other moments are compressed columns. Of
more than fit, those around the findings, the longest, and those of the beginning are taken; how
busy each thread was is told of all of it.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.brackets import numbered, stable_order, starts_of
from qtrace.analysis.distribution import percentiles
from qtrace.analysis.verdicts import SEVERITY
from qtrace.export.drawing import MARKS, Drawing, FindingMark, Span

# Over the whole recording: how busy a thread was, and how much is left out, in so many steps.
STEPS = 2048
# Changes of the number of pending bottom halves that are drawn of a context.
PENDING = 8000
# Runs kept on either side of a finding, and of each kind of the longest.
AROUND, LONGEST = 400, 200
# As many are listed.
FINDINGS, SLOWEST, NAMES, SPANS = 300, 15, 60, 2000
# Curves: points of each, and of as many bottom halves.
POINTS, CURVES = 49, 24
# Longer names and stacks are cut; characters of all stacks together.
LETTERS, STACK, STACKS = 160, 4000, 500_000
NONE = 0xFFFF
Mask = npt.NDArray[np.bool_]


def inert(text: object, letters: int = LETTERS) -> str:
    r"""Text from a target: what is not printable becomes ``\xNN``, what is long is cut."""
    whole = str(text)
    shown = "".join(
        char if char.isprintable()
        else "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogatepass"))
        for char in whole[:letters]
    )  # fmt: skip
    return shown if len(whole) <= letters else f"{shown}... ({len(whole):,} characters)"


def recording_data(drawn: Drawing, runs_shown: int) -> dict[str, Any]:
    """The part of the page that is about one recording.

    Args:
        runs_shown: at most so many runs, and as many other moments.
    """
    runs = drawn.runs
    kept, windows = _kept(drawn, runs_shown)
    other, unseen = _moments(drawn, windows, runs_shown)
    texts = _Texts()
    stacks = _stacks(drawn, kept)
    return {
        "path": inert(drawn.path, 300),
        "target": {key: inert(value, 300) for key, value in drawn.header["target"].items()},
        "recorder": inert(drawn.header.get("recorder", "")),
        "began": "" if pd.isna(drawn.wall_clock) else f"{drawn.wall_clock:%Y-%m-%d %H:%M:%S} UTC",
        "begin_ns": drawn.begin_ns,
        "lasted": max(drawn.end_ns - drawn.begin_ns, 1),
        "events": drawn.events,
        "threads": [[one.tid, inert(one.name), one.role] for one in drawn.threads],
        "contexts": [inert(name) for name in drawn.contexts],
        "verdicts": list(SEVERITY),
        "kinds": list(MARKS),
        "runs": _run_columns(drawn, kept, texts, stacks),
        "marks": _mark_columns(drawn, other, texts),
        "names": texts.found,
        "stacks": list(stacks),
        "windows": None if windows is None else [[int(a), int(b)] for a, b in windows],
        "left_out": {"runs": len(runs) - int(kept.sum()), "moments": unseen,
                     "of": len(runs)},
        "busy": [_packed(_busy(drawn, at)) for at in range(len(drawn.threads))],
        "unshown": _packed(_histogram(drawn, runs["begin_ns"].to_numpy()[~kept])),
        "pending": [_thinned(drawn, time, count) for time, count in drawn.pending],
        **{name: _spans(getattr(drawn, name), drawn)
           for name in ("commands", "jobs", "waits", "held", "losses")},
        "findings": _findings(drawn),
        "slowest": _slowest(drawn, runs["end_ns"] - runs["begin_ns"], runs["end_ns"] >= 0),
        "longest_waits": _slowest(drawn, runs["wait_ns"], runs["wait_ns"] >= 0),
        "slowest_commands": [
            _span(one, drawn) for one in
            sorted(drawn.commands, key=lambda one: one.begin_ns - one.end_ns)[:SLOWEST]
        ],
        **_statistics(drawn),
    }  # fmt: skip


def _kept(drawn: Drawing, most: int) -> tuple[Mask, list[tuple[int, int]] | None]:
    """Which runs are shown, and the stretches of time that are shown whole; None: all of it."""
    runs = drawn.runs
    if len(runs) <= most:
        return np.ones(len(runs), np.bool_), None
    begin = runs["begin_ns"].to_numpy()
    kept = np.zeros(len(runs), np.bool_)
    for values in (runs["end_ns"].to_numpy() - begin, runs["wait_ns"].to_numpy()):
        own = min(LONGEST, most // 4)
        kept[np.argpartition(-values, own)[:own]] = True
    whole = np.zeros(len(runs), np.bool_)
    left = most - int(kept.sum())
    # Verdicts come first in the list of findings, then lints.
    for one in drawn.findings:
        if left < 2:
            break
        at, half = int(begin.searchsorted(one.begin_ns)), min(AROUND, max(left // 8, 1))
        around = slice(max(at - half, 0), at + half)
        left -= int((~whole[around]).sum())
        whole[around] = True
    if left > 0:
        rest = np.flatnonzero(~whole)[:left]
        whole[rest] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[0], whole.astype(np.int8), [0]])))
    windows = [
        (int(begin[a]), int(begin[b - 1])) for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]
    return kept | whole, windows


def _moments(drawn: Drawing, windows: list[tuple[int, int]] | None, most: int) -> tuple[Mask, int]:
    """Which other moments are shown, those of the stretches that are shown whole; how many are
    not."""
    time = drawn.marks["time_ns"].to_numpy()
    shown = np.ones(len(time), np.bool_)
    if windows == []:
        shown[:] = False
    elif windows is not None:
        starts = np.array([begin for begin, _end in windows])
        ends = np.array([end for _begin, end in windows])
        at = starts.searchsorted(time, side="right") - 1
        shown = (at >= 0) & (time <= ends[np.maximum(at, 0)])
    # A schedule that its run tells of is drawn with the run.
    told = np.isin(drawn.marks["instance"], drawn.runs["instance"][drawn.runs["wait_ns"] >= 0])
    alone = ~told | (drawn.marks["instance"] < 0).to_numpy()
    shown &= alone
    shown[np.flatnonzero(shown)[most:]] = False
    return shown, int(alone.sum() - shown.sum())


class _Texts:
    """Names as they occur, by number."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._numbers: dict[str, int] = {}

    def codes(self, column: pd.Series) -> npt.NDArray[np.uint32]:
        codes = column.array.codes
        table = np.zeros(len(column.cat.categories) + 1, np.uint32)
        for code in np.unique(codes).tolist():
            text = str(column.cat.categories[code]) if code >= 0 else ""
            if text not in self._numbers:
                self._numbers[text] = len(self.found)
                self.found.append(inert(text))
            table[code] = self._numbers[text]
        return np.asarray(table[codes])


def _stacks(drawn: Drawing, kept: Mask) -> dict[str, int]:
    """The commonest stacks of the runs shown, those of findings first, leaf first, by number."""
    column = drawn.runs["stack"]
    codes = column.array.codes
    found = {one.instance for one in drawn.findings[:FINDINGS] if one.instance is not None}
    told = codes[np.isin(drawn.runs["instance"].to_numpy(), list(found))]
    count = np.bincount(codes[kept & (codes >= 0)], minlength=len(column.cat.categories))
    wanted = dict.fromkeys([*told.tolist(), *np.argsort(-count, kind="stable").tolist()])
    stacks: dict[str, int] = {}
    left = STACKS
    for code in wanted:
        if code < 0 or not count[code]:
            continue
        text = str(column.cat.categories[code])
        shown = _leaf_first(text)
        left -= len(shown)
        if left < 0 or len(stacks) >= NONE:
            break
        stacks.setdefault(shown, len(stacks))
    return stacks


def _leaf_first(stack: str) -> str:
    return inert(";".join(reversed(stack.split(";"))), STACK)


def _run_columns(
    drawn: Drawing, kept: Mask, texts: _Texts, stacks: Mapping[str, int]
) -> dict[str, Any]:
    every = drawn.runs
    runs = every[kept]
    numbers = [int(frame["instance"].max()) for frame in (every, drawn.marks) if len(frame)]
    by = np.full(max(numbers, default=-1) + 2, -1)
    begun = drawn.marks[(drawn.marks["instance"] >= 0).to_numpy()]
    by[begun["instance"].to_numpy()] = begun["thread"].to_numpy()
    begin, end = runs["begin_ns"].to_numpy(), runs["end_ns"].to_numpy()
    column = runs["stack"]
    table = np.full(len(column.cat.categories) + 1, NONE)
    for code in np.unique(column.array.codes).tolist():
        if code >= 0:
            text = str(column.cat.categories[code])
            shown = _leaf_first(text)
            table[code] = stacks.get(shown, NONE)
    verdict = runs["verdict"].array.codes
    return _columns(
        {
            "begin": (begin - drawn.begin_ns).astype(np.float64),
            "took": np.where(end < 0, -1, end - begin).astype(np.float64),
            "wait": runs["wait_ns"].to_numpy().astype(np.float64),
            "row": runs["row"].to_numpy().astype(np.uint32),
            "instance": runs["instance"].to_numpy().astype(np.int32),
            "name": texts.codes(runs["name"]),
            "thread": runs["thread"].to_numpy().astype(np.uint16),
            "context": runs["context"].to_numpy().astype(np.uint16),
            "by": np.where(by[runs["instance"]] < 0, NONE, by[runs["instance"]]).astype(np.uint16),
            "stack": table[column.array.codes].astype(np.uint16),
            "verdict": np.where(verdict < 0, 255, verdict).astype(np.uint8),
            "poll": runs["poll"].to_numpy().astype(np.uint8),
            "open": runs["open"].to_numpy().astype(np.uint8),
        }
    )


def _mark_columns(drawn: Drawing, shown: Mask, texts: _Texts) -> dict[str, Any]:
    marks = drawn.marks[shown & (drawn.marks["thread"] >= 0).to_numpy()]
    return _columns(
        {
            "time": (marks["time_ns"].to_numpy() - drawn.begin_ns).astype(np.float64),
            "row": marks["row"].to_numpy().astype(np.uint32),
            "name": texts.codes(marks["name"]),
            "thread": marks["thread"].to_numpy().astype(np.uint16),
            "context": marks["context"].to_numpy().astype(np.uint16),
            "kind": marks["kind"].to_numpy().astype(np.uint8),
        }
    )


def _columns(columns: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Columns as one text: little-endian, one after the other, the widest first."""
    raw = b"".join(np.ascontiguousarray(column).tobytes() for column in columns.values())
    kinds = [[name, column.dtype.str[1:]] for name, column in columns.items()]
    length = len(next(iter(columns.values())))
    return {"columns": kinds, "length": length, "data": _text(raw)}


def _packed(values: npt.NDArray[Any]) -> str:
    return _text(np.ascontiguousarray(values).tobytes())


def _text(raw: bytes) -> str:
    return base64.b64encode(zlib.compress(raw, 9)).decode()


def _edges(drawn: Drawing) -> npt.NDArray[np.float64]:
    return np.linspace(drawn.begin_ns, max(drawn.end_ns, drawn.begin_ns + 1), STEPS + 1)


def _busy(drawn: Drawing, thread: int) -> npt.NDArray[np.uint8]:
    """Which part of each step a thread ran bottom halves, in 255ths; 1 at least where it did."""
    runs = drawn.runs
    own = (runs["thread"] == thread).to_numpy() & (runs["end_ns"] >= 0).to_numpy()
    begin, end = runs["begin_ns"].to_numpy()[own], runs["end_ns"].to_numpy()[own]
    if not len(begin):
        return np.zeros(STEPS, np.uint8)
    # Runs inside others add nothing.
    until = np.maximum.accumulate(end)
    before = np.append(begin[0], until[:-1])
    begin = np.minimum(np.maximum(begin, before), until)
    total = np.append(0, np.cumsum(until - begin))
    edges = _edges(drawn)
    at = begin.searchsorted(edges, side="right")
    spent = total[at] - np.where(at > 0, np.maximum(until[at - 1] - edges, 0), 0)
    part = np.diff(spent) / np.diff(edges)
    some = np.histogram(begin, edges)[0] > 0
    found: npt.NDArray[np.uint8] = np.maximum(np.ceil(np.clip(part, 0, 1) * 255), some).astype(
        np.uint8
    )
    return found


def _histogram(drawn: Drawing, times: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    return np.histogram(times, _edges(drawn))[0].astype(np.uint32)


def _thinned(
    drawn: Drawing, time: npt.NDArray[np.int64], count: npt.NDArray[np.int32]
) -> dict[str, Any]:
    """How many were pending; of many changes the most in each step, and the last."""
    most, size = int(count.max(initial=0)), 0
    if len(time) > PENDING:
        size = int(time[-1] - time[0]) // (PENDING // 2)
        step = (time - time[0]) * (PENDING // 2) // max(int(time[-1] - time[0]), 1)
        first = np.flatnonzero(starts_of(step))
        highest = np.maximum.reduceat(count, first)
        last = count[np.append(first[1:], len(count)) - 1]
        until = time[np.append(first[1:], len(time)) - 1]
        time = np.stack([time[first], until], 1).ravel()
        count = np.stack([highest, last], 1).ravel()
    changes: dict[str, npt.NDArray[Any]] = {
        "time": (time - drawn.begin_ns).astype(np.float64),
        "count": count.astype(np.uint32),
    }
    return {**_columns(changes), "most": most, "step": size}


def _span(one: Span, drawn: Drawing) -> dict[str, Any]:
    return {
        "name": inert(one.name),
        "begin": one.begin_ns - drawn.begin_ns,
        "end": one.end_ns - drawn.begin_ns,
        "tid": one.tid,
        "open": one.open,
        "rows": list(one.rows[:8]),
        "facts": [[key, inert(value, 600)] for key, value in one.facts],
    }


def _spans(spans: Sequence[Span], drawn: Drawing) -> dict[str, Any]:
    """The longest of them, in time order; and how many there are."""
    longest = sorted(spans, key=lambda one: one.begin_ns - one.end_ns)[:SPANS]
    ordered = sorted(longest, key=lambda one: one.begin_ns)
    return {"of": len(spans), "shown": [_span(one, drawn) for one in ordered]}


def _findings(drawn: Drawing) -> dict[str, Any]:
    """The verdict's before the lints'; of many alike the first, so that no kind is missing."""
    counts: dict[tuple[str, str], int] = {}
    chosen: list[FindingMark] = []
    for one in drawn.findings:
        kind = one.what, one.name
        counts[kind] = counts.get(kind, 0) + 1
        if counts[kind] <= FINDINGS // 4 and len(chosen) < FINDINGS:
            chosen.append(one)
    return {
        "of": len(drawn.findings),
        "shown": [
            {
                "what": one.what,
                "name": inert(one.name),
                "sentence": inert(one.sentence, 1000),
                "begin": one.begin_ns - drawn.begin_ns,
                "end": one.end_ns - drawn.begin_ns,
                "tid": one.tid,
                "rows": list(one.rows),
                "verdict": one.verdict,
                "instance": one.instance,
            }
            for one in chosen
        ],
    }


def _slowest(drawn: Drawing, values: pd.Series, known: pd.Series) -> list[dict[str, Any]]:
    """The runs with the highest values."""
    numbers = np.where(known.to_numpy(), values.to_numpy(), -1)
    count = min(SLOWEST, int((numbers >= 0).sum()))
    at = _top(numbers, count)
    rows = drawn.runs.take(at)
    return [
        {
            "name": inert(one["name"]),
            "context": inert(drawn.contexts[one["context"]]),
            "thread": int(one["thread"]),
            "value": int(value),
            "begin": int(one["begin_ns"]) - drawn.begin_ns,
            "row": int(one["row"]),
            "verdict": str(one["verdict"]),
        }
        for one, value in zip(rows.to_dict("records"), numbers[at], strict=True)
    ]


def _top(numbers: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    if not count:
        return np.empty(0, np.int64)
    at = np.argpartition(-numbers, count - 1)[:count]
    return np.asarray(at[np.argsort(-numbers[at], kind="stable")])


def _statistics(drawn: Drawing) -> dict[str, Any]:
    """How often, how late, how long: of each bottom half and context, and curves of the busiest."""
    runs = drawn.runs
    if runs.empty:
        return {"statistics": [], "curves": [], "left_out_names": 0}
    wait = runs["wait_ns"].to_numpy(np.float64)
    took = (runs["end_ns"] - runs["begin_ns"]).to_numpy(np.float64)
    wait[wait < 0] = np.nan
    took[(runs["end_ns"] < 0).to_numpy()] = np.nan
    group = numbered(runs["name"].array.codes, runs["context"].to_numpy())
    order = stable_order(group)
    parts = np.split(order, np.flatnonzero(starts_of(group[order]))[1:])
    parts.sort(key=lambda part: -len(part))
    roles = np.array([one.role or "other" for one in drawn.threads], object)
    table, curves = [], []
    for place, part in enumerate(parts[:NAMES]):
        first = runs.iloc[part[0]]
        name, context = inert(first["name"]), inert(drawn.contexts[first["context"]])
        table.append(
            {
                "name": name,
                "context": context,
                "ran": len(part),
                "wait": percentiles(wait[part]),
                "took": percentiles(took[part]),
            }
        )
        if place < CURVES:
            own = roles[runs["thread"].to_numpy()[part]]
            for role in pd.unique(own).tolist():
                mine = part[own == role]
                curves.append(
                    {
                        "name": name,
                        "context": context,
                        "role": role,
                        "wait": _curve(wait[mine]),
                        "took": _curve(took[mine]),
                        "ran": len(mine),
                    }
                )
    return {"statistics": table, "curves": curves, "left_out_names": max(len(parts) - NAMES, 0)}


def _curve(values: npt.NDArray[np.float64]) -> list[int]:
    """Which time so many of them do not exceed: equal steps from the shortest to the longest."""
    known = values[~np.isnan(values)]
    if not len(known):
        return []
    points = np.quantile(known, np.linspace(0, 1, POINTS), method="higher")
    return [int(ns) for ns in points]
