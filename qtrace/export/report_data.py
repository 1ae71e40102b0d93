"""What the HTML report shows of a recording, as JSON, however long the recording was.

Times are nanoseconds since the recording began. Runs and other moments are compressed columns. Of
more than fit, those around the findings, the longest, and those of the beginning are taken; how
busy each thread was is told of all of it. It is gone through window by window, once.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.arrays import Numbers
from qtrace.analysis.brackets import numbered, starts_of
from qtrace.analysis.distribution import Times
from qtrace.analysis.verdicts import SEVERITY
from qtrace.export.drawing import Drawing, FindingMark, Span
from qtrace.export.groundwork import LONGEST, MARKS, present
from qtrace.export.windows import Window, stacked

# Over the whole recording: how busy a thread was, and how much is left out, in so many steps.
STEPS = 2048
# Changes of the number of pending bottom halves that are drawn of a context.
PENDING = 8000
# Runs kept on either side of a finding.
AROUND = 400
# As many are listed.
FINDINGS, SLOWEST, NAMES, SPANS = 300, 15, 60, 2000
# Curves: points of each, and of as many bottom halves.
POINTS, CURVES = 49, 24
# Of a curve, and of a line of the table: so many times are taken as they are (``Times``).
EXACT = 100_000
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
    page = _Page(drawn, _chosen(drawn, runs_shown), runs_shown)
    for window in drawn.windows():
        page.add(window)
    return page.data()


@dataclass(frozen=True)
class _Chosen:
    """Which runs are shown.

    Attributes:
        rows: of the file.
        begins, last: the first and the last place of each stretch that is shown whole, in order;
            None: all of it is.
    """

    rows: Numbers
    begins: Numbers | None = None
    last: Numbers | None = None

    def runs(self, window: Window) -> Mask:
        """Of a window's."""
        if self.begins is None:
            return np.ones(len(window.runs), np.bool_)
        place = window.first_run + np.arange(len(window.runs))
        return self._whole(place, place) | np.isin(window.runs["row"].to_numpy(), self.rows)

    def marks(self, window: Window) -> Mask:
        """Likewise: those from the first to the last run of a stretch."""
        time = window.marks["time_ns"].to_numpy()
        if self.begins is None:
            return np.ones(len(time), np.bool_)
        begin = window.runs["begin_ns"].to_numpy()
        begun = window.first_run + begin.searchsorted(time, side="right")
        before = window.first_run + begin.searchsorted(time)
        return self._whole(begun - 1, before)

    def _whole(self, place: Numbers, before: Numbers) -> Mask:
        assert self.begins is not None
        assert self.last is not None
        if not len(self.begins):
            return np.zeros(len(place), np.bool_)
        at = self.begins.searchsorted(place, side="right") - 1
        return np.asarray((at >= 0) & (before <= self.last[np.maximum(at, 0)]))

    def times(self, places: Numbers | None, window: Window) -> list[int]:
        """When the runs at those of these places begin that lie in a window."""
        if places is None:
            return []
        begin = window.runs["begin_ns"].to_numpy()
        own = places - window.first_run
        found: list[int] = begin[own[(own >= 0) & (own < len(begin))]].tolist()
        return found


def _chosen(drawn: Drawing, most: int) -> _Chosen:
    ground = drawn.ground
    places = ground.places
    longest = min(LONGEST, most // 4)
    rows = np.union1d(ground.took.first(longest), ground.waited.first(longest))
    if places.count <= most:
        return _Chosen(rows)
    whole = np.zeros(places.count, np.bool_)
    left = most - len(rows)
    # Verdicts come first in the list of findings, then lints.
    found = places.of(np.array([one.at_ns for one in drawn.findings], np.int64))
    for at in found.tolist():
        if left < 2:
            break
        half = max(min(AROUND, max(left // 8, 1)), places.step)
        around = slice(max(at - half, 0), at + half)
        left -= int((~whole[around]).sum())
        whole[around] = True
    if left > 0:
        rest = np.flatnonzero(~whole[: left + int(whole.sum())])[:left]
        whole[rest] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[False], whole, [False]])))
    return _Chosen(rows, edges[::2], edges[1::2] - 1)


class _Page:
    """What is told of a recording, window by window."""

    def __init__(self, drawn: Drawing, chosen: _Chosen, most: int) -> None:
        self._drawn, self._chosen, self._most = drawn, chosen, most
        self._steps = _Steps(drawn)
        self._busy = [_Busy(self._steps) for _one in drawn.threads]
        self._pending = [_Thinned(drawn) for _name in drawn.contexts]
        self._unshown = np.zeros(STEPS, np.int64)
        self._statistics = _Statistics(drawn)
        self._runs: list[pd.DataFrame] = []
        self._marks: list[pd.DataFrame] = []
        self._left_out = self._shown = self._unseen = 0
        self._slowest = {
            "slowest": _Slowest(drawn, drawn.ground.took.first(SLOWEST), "took"),
            "longest_waits": _Slowest(drawn, drawn.ground.waited.first(SLOWEST), "wait"),
        }
        self._told: list[int] = []
        # When the stretches that are shown whole begin and end.
        self._from: list[int] = []
        self._to: list[int] = []
        some = (one.instance for one in drawn.findings[:FINDINGS])
        self._found = np.array([one for one in some if one is not None], np.int64)

    def add(self, window: Window) -> None:
        """The next one."""
        runs = window.runs
        begin, end = runs["begin_ns"].to_numpy(), runs["end_ns"].to_numpy()
        kept = self._chosen.runs(window)
        self._runs.append(runs[kept])
        self._left_out += int((~kept).sum())
        self._unshown += np.bincount(self._steps.of(begin[~kept]), minlength=STEPS)
        thread = runs["thread"].to_numpy()
        for place, busy in enumerate(self._busy):
            own = (thread == place) & (end >= 0)
            busy.add(begin[own], end[own])
        for thinned, changes in zip(self._pending, window.pending, strict=True):
            thinned.add(*changes)
        for slowest in self._slowest.values():
            slowest.add(runs)
        self._statistics.add(runs)
        self._from += self._chosen.times(self._chosen.begins, window)
        self._to += self._chosen.times(self._chosen.last, window)
        told = np.isin(runs["instance"].to_numpy(), self._found)
        self._told += runs["stack"].array.codes[told].tolist()
        self._add_marks(window)

    def _add_marks(self, window: Window) -> None:
        """Those of the stretches that are shown whole, the first of them."""
        # A schedule that its run tells of is drawn with the run.
        alone = ~window.marks["flows"].to_numpy()
        shown = np.flatnonzero(alone & self._chosen.marks(window))[: self._most - self._shown]
        self._shown += len(shown)
        self._unseen += int(alone.sum()) - len(shown)
        self._marks.append(window.marks.take(shown))

    def data(self) -> dict[str, Any]:
        """See ``recording_data``."""
        drawn = self._drawn
        began = "" if pd.isna(drawn.wall_clock) else f"{drawn.wall_clock:%Y-%m-%d %H:%M:%S} UTC"
        runs = stacked(self._runs)
        texts = _Texts()
        stacks = _stacks(runs, self._told)
        return {
            "path": inert(drawn.path, 300),
            "target": {key: inert(value, 300) for key, value in drawn.header["target"].items()},
            "recorder": inert(drawn.header.get("recorder", "")),
            "began": began,
            "begin_ns": drawn.begin_ns,
            "lasted": max(drawn.end_ns - drawn.begin_ns, 1),
            "events": drawn.events,
            "threads": [[one.tid, inert(one.name), one.role] for one in drawn.threads],
            "contexts": [inert(name) for name in drawn.contexts],
            "verdicts": list(SEVERITY),
            "kinds": list(MARKS),
            "runs": _run_columns(drawn, runs, texts, stacks),
            "marks": _mark_columns(drawn, stacked(self._marks), texts),
            "names": texts.found,
            "stacks": list(stacks),
            "windows": None if self._chosen.begins is None
            else [list(pair) for pair in zip(self._from, self._to, strict=True)],
            "left_out": {"runs": self._left_out, "moments": self._unseen,
                         "of": drawn.ground.places.count},
            "busy": [_packed(one.shares()) for one in self._busy],
            "unshown": _packed(self._unshown.astype(np.uint32)),
            "pending": [one.data() for one in self._pending],
            **{name: _spans(getattr(drawn, name), drawn)
               for name in ("commands", "jobs", "waits", "held", "losses")},
            "findings": _findings(drawn),
            **{name: one.data() for name, one in self._slowest.items()},
            "slowest_commands": [
                _span(one, drawn) for one in
                sorted(drawn.commands, key=lambda one: one.begin_ns - one.end_ns)[:SLOWEST]
            ],
            **self._statistics.data(),
        }  # fmt: skip


class _Texts:
    """Names as they occur, by number."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._numbers: dict[str, int] = {}

    def codes(self, column: pd.Series) -> npt.NDArray[np.uint32]:
        codes = column.array.codes
        table = np.zeros(len(column.cat.categories) + 1, np.uint32)
        for code in present(codes):
            text = str(column.cat.categories[code]) if code >= 0 else ""
            if text not in self._numbers:
                self._numbers[text] = len(self.found)
                self.found.append(inert(text))
            table[code] = self._numbers[text]
        return np.asarray(table[codes])


def _stacks(runs: pd.DataFrame, told: Sequence[int]) -> dict[str, int]:
    """The commonest stacks of the runs shown, those of findings first, leaf first, by number."""
    column = runs["stack"]
    codes = column.array.codes
    count = np.bincount(codes[codes >= 0], minlength=len(column.cat.categories))
    wanted = dict.fromkeys([*told, *np.argsort(-count, kind="stable").tolist()])
    stacks: dict[str, int] = {}
    left = STACKS
    for code in wanted:
        # Of a finding that is not shown, none.
        if not 0 <= code < len(count) or not count[code]:
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
    drawn: Drawing, runs: pd.DataFrame, texts: _Texts, stacks: Mapping[str, int]
) -> dict[str, Any]:
    begin, end = runs["begin_ns"].to_numpy(), runs["end_ns"].to_numpy()
    column = runs["stack"]
    table = np.full(len(column.cat.categories) + 1, NONE)
    for code in present(column.array.codes):
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
            "by": np.where(runs["by"] < 0, NONE, runs["by"]).astype(np.uint16),
            "stack": table[column.array.codes].astype(np.uint16),
            "verdict": np.where(verdict < 0, 255, verdict).astype(np.uint8),
            "poll": runs["poll"].to_numpy().astype(np.uint8),
            "open": runs["open"].to_numpy().astype(np.uint8),
        }
    )


def _mark_columns(drawn: Drawing, marks: pd.DataFrame, texts: _Texts) -> dict[str, Any]:
    marks = marks[(marks["thread"] >= 0).to_numpy()]
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


class _Steps:
    """A recording in steps: their edges, in nanoseconds."""

    def __init__(self, drawn: Drawing) -> None:
        span = max(drawn.end_ns - drawn.begin_ns, STEPS)
        # Not by floats: what a step gets must not depend on where the recording was cut.
        self.edges = np.array(
            [drawn.begin_ns + span * number // STEPS for number in range(STEPS + 1)], np.int64
        )

    def of(self, times: Numbers) -> Numbers:
        """In which step each of these moments is."""
        return np.clip(self.edges.searchsorted(times, side="right") - 1, 0, STEPS - 1)


class _Busy:
    """Which part of each step a thread ran bottom halves."""

    def __init__(self, steps: _Steps) -> None:
        self._steps, self._until = steps, 0
        self._spent = np.zeros(STEPS, np.int64)
        self._some = np.zeros(STEPS, np.bool_)

    def add(self, begin: Numbers, end: Numbers) -> None:
        """Its next runs, in time order."""
        if not len(begin):
            return
        self._some[self._steps.of(begin)] = True
        # Runs inside others add nothing.
        until = np.maximum(np.maximum.accumulate(end), self._until)
        before = np.append(self._until, until[:-1])
        begin = np.minimum(np.maximum(begin, before), until)
        self._until = int(until[-1])
        total = np.append(0, np.cumsum(until - begin))
        edges = self._steps.edges
        at = begin.searchsorted(edges, side="right")
        over = np.where(at > 0, np.maximum(until[at - 1] - edges, 0), 0)
        self._spent += np.diff(total[at] - over)

    def shares(self) -> npt.NDArray[np.uint8]:
        """In 255ths; 1 at least where it did."""
        part = self._spent / np.diff(self._steps.edges)
        found: npt.NDArray[np.uint8] = np.maximum(
            np.ceil(np.clip(part, 0, 1) * 255), self._some
        ).astype(np.uint8)
        return found


class _Thinned:
    """How many were pending; of many changes the most in each step, and the last."""

    def __init__(self, drawn: Drawing) -> None:
        self._begin, self._span = drawn.begin_ns, max(drawn.end_ns - drawn.begin_ns, 1)
        self._number = self._most = 0
        self._all: list[npt.NDArray[np.int64]] = []
        # When a step's first and last change were, the most in it, and what the last one left.
        self._first = np.full(PENDING // 2 + 1, -1, np.int64)
        self._last, self._highest, self._left = (np.zeros_like(self._first) for _ in range(3))

    def add(self, time: Numbers, count: npt.NDArray[np.int32]) -> None:
        """The next changes, in time order."""
        if not len(time):
            return
        self._number += len(time)
        self._most = max(self._most, int(count.max()))
        if self._number <= PENDING:
            self._all.append(np.stack([time, count]))
        step = np.clip((time - self._begin) * (PENDING // 2) // self._span, 0, PENDING // 2)
        begins = np.flatnonzero(starts_of(step))
        ends = np.append(begins[1:], len(step)) - 1
        own = step[begins]
        new = self._first[own] < 0
        self._first[own[new]] = time[begins[new]]
        self._last[own], self._left[own] = time[ends], count[ends]
        highest = np.maximum.reduceat(count, begins)
        self._highest[own] = np.maximum(self._highest[own], highest)

    def data(self) -> dict[str, Any]:
        """As the page has it."""
        size = 0
        if self._number > PENDING:
            size = self._span // (PENDING // 2)
            own = self._first >= 0
            time = np.stack([self._first[own], self._last[own]], 1).ravel()
            count = np.stack([self._highest[own], self._left[own]], 1).ravel()
        else:
            time, count = np.concatenate([np.empty((2, 0), np.int64), *self._all], axis=1)
        changes: dict[str, npt.NDArray[Any]] = {
            "time": (time - self._begin).astype(np.float64),
            "count": count.astype(np.uint32),
        }
        return {**_columns(changes), "most": self._most, "step": size}


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


class _Slowest:
    """The runs with the highest values, by their rows."""

    def __init__(self, drawn: Drawing, rows: Numbers, what: str) -> None:
        self._drawn, self._rows, self._what = drawn, rows, what
        self._found: dict[int, dict[str, Any]] = {}

    def add(self, runs: pd.DataFrame) -> None:
        """Some more."""
        own = np.flatnonzero(np.isin(runs["row"].to_numpy(), self._rows))
        for one in runs.take(own).to_dict("records"):
            took = one["end_ns"] - one["begin_ns"]
            self._found[one["row"]] = {
                "name": inert(one["name"]),
                "context": inert(self._drawn.contexts[one["context"]]),
                "thread": int(one["thread"]),
                "value": int(took if self._what == "took" else one["wait_ns"]),
                "begin": int(one["begin_ns"]) - self._drawn.begin_ns,
                "row": int(one["row"]),
                "verdict": str(one["verdict"]),
            }

    def data(self) -> list[dict[str, Any]]:
        """The worst first."""
        return [self._found[row] for row in self._rows.tolist()]


class _Group:
    """A bottom half in a context: how often it ran, how late, how long, by the thread's role."""

    def __init__(self) -> None:
        self.ran = 0
        self.roles: dict[str, tuple[Times, Times, list[int]]] = {}

    def add(self, role: str, wait: Numbers, took: Numbers) -> None:
        """Some runs; what is not known is below 0."""
        self.ran += len(wait)
        waits, tooks, count = self.roles.setdefault(role, (Times(EXACT), Times(EXACT), [0]))
        waits.add(wait[wait >= 0])
        tooks.add(took[took >= 0])
        count[0] += len(wait)


class _Statistics:
    """How often, how late, how long: of each bottom half and context, and curves of the busiest."""

    def __init__(self, drawn: Drawing) -> None:
        self._contexts = drawn.contexts
        self._roles = [one.role or "other" for one in drawn.threads]
        known = {role: number for number, role in enumerate(dict.fromkeys(self._roles))}
        self._role = np.array([*(known[role] for role in self._roles), -1], np.int64)
        self._groups: dict[tuple[str, int], _Group] = {}

    def add(self, runs: pd.DataFrame) -> None:
        """The next ones, in time order."""
        if runs.empty:
            return
        thread, begin = runs["thread"].to_numpy(), runs["begin_ns"].to_numpy()
        end, wait = runs["end_ns"].to_numpy(), runs["wait_ns"].to_numpy()
        took = np.where(end < 0, -1, end - begin)
        codes, context = runs["name"].array.codes, runs["context"].to_numpy()
        group = numbered(codes, context, self._role[thread])
        # In the order in which they occur.
        for number in range(int(group.max()) + 1):
            own = np.flatnonzero(group == number)
            first = runs.iloc[own[0]]
            key = str(first["name"]), int(first["context"])
            role = self._roles[int(first["thread"])]
            self._groups.setdefault(key, _Group()).add(role, wait[own], took[own])

    def data(self) -> dict[str, Any]:
        """As the page has it."""
        ordered = sorted(self._groups.items(), key=lambda one: -one[1].ran)
        table, curves = [], []
        for place, ((name, context), group) in enumerate(ordered[:NAMES]):
            what = {"name": inert(name), "context": inert(self._contexts[context])}
            wait, took = Times(EXACT), Times(EXACT)
            for role, (waits, tooks, count) in group.roles.items():
                wait, took = wait + waits, took + tooks
                if place < CURVES:
                    curves.append(
                        {
                            **what,
                            "role": role,
                            "wait": waits.quantiles(POINTS),
                            "took": tooks.quantiles(POINTS),
                            "ran": count[0],
                        }
                    )
            table.append(
                {**what, "ran": group.ran, "wait": wait.percentiles(), "took": took.percentiles()}
            )
        left_out = max(len(ordered) - NAMES, 0)
        return {"statistics": table, "curves": curves, "left_out_names": left_out}
