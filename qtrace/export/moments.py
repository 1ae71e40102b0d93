"""What a recording shows of any one moment: who ran what, what was pending, what was busiest.

Its windows lie in temporary files (about 6 bytes of an event), of which few are in memory: any
moment is shown as quickly, however long the recording is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from qtrace.analysis.arrays import Numbers
from qtrace.analysis.distribution import Times
from qtrace.errors import OutputFailed
from qtrace.export.drawing import Drawing, FindingMark, Span
from qtrace.export.groundwork import Thread
from qtrace.export.windows import Window, stacked

# Windows of a recording that are kept in memory.
KEPT = 4
# Of times in a window of time so many are taken as they are (``Times``).
EXACT = 100_000
RUNS = ["begin_ns", "end_ns", "thread", "name", "context", "wait_ns", "poll"]
LIVES = ["scheduled_ns", "ended_ns", "name", "context"]
# Of a busy window, so many names are told.
BUSIEST = 40


@dataclass(frozen=True, slots=True)
class Running:
    """A thread at a moment: the innermost run that it is in, since when; else its latest one, and
    when that began."""

    thread: Thread
    name: str = ""
    poll: bool = False
    since_ns: int = -1
    over: bool = True


@dataclass(frozen=True, slots=True)
class Waiting:
    """A bottom half that is pending."""

    name: str
    context: str
    since_ns: int


@dataclass(frozen=True, slots=True)
class Busy:
    """A bottom half in a window of time: which part of all runs is its own, and nanoseconds of p50
    and p99; None where no pair is known."""

    name: str
    share: float
    wait: tuple[float, float] | None
    took: tuple[float, float] | None


@dataclass(frozen=True)
class Moment:
    """All of it.

    Attributes:
        time_ns: as in the recording.
        window_ns: over which ``busiest`` and ``rates`` (runs in it) are taken, up to the moment.
        contexts: each with how many bottom halves are pending, and its runs in the window.
        pending: those that wait longest first.
        spans: commands and jobs, what is known to wait, losses.
        findings: those whose stretch of time it lies in.
    """

    time_ns: int
    window_ns: int
    running: tuple[Running, ...]
    contexts: tuple[tuple[str, int, int], ...]
    pending: tuple[Waiting, ...]
    busiest: tuple[Busy, ...]
    spans: tuple[Span, ...]
    findings: tuple[FindingMark, ...]


@dataclass
class _Shelved:
    """A window of the recording on disk, and what lies around it.

    Attributes:
        files: by what they hold.
        until_ns: its last moment.
        counts: how many were pending in each context before it.
        running: the runs that each thread was in when it began, and its latest one.
    """

    files: dict[str, Path]
    until_ns: int
    counts: list[int]
    running: pd.DataFrame


class _Shelf:
    """The windows of a recording."""

    def __init__(self, drawn: Drawing) -> None:
        self._folder = TemporaryDirectory(prefix="qtrace-replay-")
        self.windows: list[_Shelved] = []
        self._known: OrderedDict[Path, pd.DataFrame] = OrderedDict()
        self._dtypes: dict[str, Any] = {}
        crossing: list[pd.DataFrame] = []
        running, counts, since = pd.DataFrame(columns=RUNS), [0] * len(drawn.contexts), -1
        try:
            for window in drawn.windows(with_lives=True):
                runs = window.runs
                still = np.where(runs["open"], drawn.end_ns + 1, runs["end_ns"])
                runs = runs.assign(end_ns=still)[RUNS]
                # One that lies in several windows is looked for in all of them.
                over = (window.lives["scheduled_ns"] <= since).to_numpy()
                crossing.append(window.lives[over])
                tables = {"runs": runs, "lives": window.lives[~over], "pending": _changes(window)}
                files = {what: self._write(what, table) for what, table in tables.items()}
                self.windows.append(_Shelved(files, window.until_ns, counts, running))
                counts = [
                    int(count[-1]) if len(count) else before
                    for before, (_time, count) in zip(counts, window.pending, strict=True)
                ]
                running = _still_running(stacked([running, runs]), window.until_ns)
                since = window.until_ns
        except OSError as error:
            raise OutputFailed(
                f"cannot keep the recording in {self._folder.name}: {error.strerror or error}",
                "free some space, or name another folder by TMPDIR",
            ) from error
        self.crossing = stacked(crossing)

    def _write(self, what: str, table: pd.DataFrame) -> Path:
        path = Path(self._folder.name, f"{len(self.windows)}-{what}")
        columns: dict[str, Any] = {}
        for name in table.columns:
            column = table[name]
            if isinstance(column.dtype, pd.CategoricalDtype):
                # The texts of the last window begin with those of all others.
                self._dtypes[f"{what} {name}"] = column.dtype
                columns[name] = column.array.codes
            else:
                columns[name] = column.to_numpy()
        written = pa.table(columns)
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with (
            pa.OSFile(str(path), "wb") as file,
            pa.ipc.new_file(file, written.schema, options=options) as writer,
        ):
            writer.write_table(written)
        return path

    def read(self, window: _Shelved, what: str) -> pd.DataFrame:
        """What was written of it."""
        path = window.files[what]
        if path not in self._known:
            with pa.OSFile(str(path), "rb") as file:
                found = pa.ipc.open_file(file).read_all()
            columns = {name: found[name].to_numpy() for name in found.column_names}
            for name in columns:
                if (dtype := self._dtypes.get(f"{what} {name}")) is not None:
                    columns[name] = pd.Categorical.from_codes(columns[name], dtype=dtype)
            self._known[path] = pd.DataFrame(columns, copy=False)
            while len(self._known) > KEPT * len(window.files):
                self._known.popitem(last=False)
        self._known.move_to_end(path)
        return self._known[path]


def _changes(window: Window) -> pd.DataFrame:
    """How the numbers of pending bottom halves changed."""
    context = np.repeat(np.arange(len(window.pending)), [len(one[0]) for one in window.pending])
    none: list[Numbers] = [np.empty(0, np.int64)]
    return pd.DataFrame(
        {
            "place": context,
            "time_ns": np.concatenate([*none, *(time for time, _count in window.pending)]),
            "count": np.concatenate([*none, *(count for _time, count in window.pending)]),
        }
    )


def _still_running(runs: pd.DataFrame, until_ns: int) -> pd.DataFrame:
    """Of each thread the runs that it is in at a moment, and its latest one."""
    kept = ~runs["thread"].duplicated(keep="last").to_numpy()
    kept |= (runs["end_ns"] > until_ns).to_numpy(np.bool_)
    return runs[kept]


@dataclass
class _Name:
    """A bottom half in a window of time."""

    count: int = 0
    wait: Times = field(default_factory=lambda: Times(EXACT))
    took: Times = field(default_factory=lambda: Times(EXACT))


class Moments:
    """The moments of one recording, which is gone through for them."""

    def __init__(self, drawn: Drawing) -> None:
        """Raises OutputFailed: there is no room for it."""
        self.drawn = drawn
        self._shelf = _Shelf(drawn)
        self._untils = np.array([one.until_ns for one in self._shelf.windows], np.int64)

    def at(self, time_ns: int, window_ns: int) -> Moment:
        """What it shows; the runs of ``window_ns`` before it are counted, too."""
        drawn = self.drawn
        ran = np.zeros(len(drawn.contexts), np.int64)
        names: dict[str, _Name] = {}
        for runs in self._between(time_ns - window_ns, time_ns):
            context = runs["context"].to_numpy()
            ran += np.bincount(context[context >= 0], minlength=len(ran))
            _count(names, runs)
        now = self._shelf.windows[self._place(time_ns)]
        spans = [*drawn.commands, *drawn.jobs, *drawn.waits, *drawn.held, *drawn.losses]
        counts = self._counts(now, time_ns)
        return Moment(
            time_ns,
            window_ns,
            tuple(self._running(now, time_ns)),
            tuple(zip(drawn.contexts, counts, ran.tolist(), strict=True)),
            tuple(self._pending(now, time_ns)),
            tuple(_busiest(names)),
            tuple(one for one in spans if _covers(one, time_ns)),
            tuple(one for one in drawn.findings if _covers(one, time_ns)),
        )

    def _place(self, time_ns: int) -> int:
        """The number of the window of a moment."""
        return min(int(self._untils.searchsorted(time_ns)), len(self._untils) - 1)

    def _between(self, since_ns: int, until_ns: int) -> Iterator[pd.DataFrame]:
        """The runs that began after one moment, up to another."""
        for window in self._shelf.windows[self._place(since_ns) : self._place(until_ns) + 1]:
            runs = self._shelf.read(window, "runs")
            begin = runs["begin_ns"].to_numpy()
            first, last = begin.searchsorted([since_ns, until_ns], side="right").tolist()
            yield runs.iloc[first:last]

    def _counts(self, now: _Shelved, time_ns: int) -> list[int]:
        """How many were pending in each context."""
        changes = self._shelf.read(now, "pending")
        last = changes[(changes["time_ns"] <= time_ns).to_numpy()].drop_duplicates(
            "place", keep="last"
        )
        known = dict(zip(last["place"].tolist(), last["count"].tolist(), strict=True))
        return [known.get(place, count) for place, count in enumerate(now.counts)]

    def _running(self, now: _Shelved, time_ns: int) -> Iterator[Running]:
        own = self._shelf.read(now, "runs")
        begun = int(own["begin_ns"].to_numpy().searchsorted(time_ns, side="right"))
        runs = _still_running(stacked([now.running, own.iloc[:begun]]), time_ns)
        by_thread = {int(str(place)): some for place, some in runs.groupby("thread")}
        for place, thread in enumerate(self.drawn.threads):
            if place not in by_thread:
                yield Running(thread)
                continue
            # The innermost one began last.
            some = by_thread[place]
            inside = some[(some["end_ns"] > time_ns).to_numpy(np.bool_)]
            run = (inside if len(inside) else some).iloc[-1]
            yield Running(
                thread, str(run["name"]), bool(run["poll"]), int(run["begin_ns"]), inside.empty
            )

    def _pending(self, now: _Shelved, time_ns: int) -> Iterator[Waiting]:
        lives = pd.concat(
            [
                one[((one["scheduled_ns"] <= time_ns) & (one["ended_ns"] > time_ns)).to_numpy()]
                .astype(object)
                for one in (self._shelf.crossing, self._shelf.read(now, "lives"))
            ]
        )  # fmt: skip
        for scheduled, _ended, name, context in sorted(lives.to_numpy().tolist()):
            yield Waiting(str(name), str(context), int(scheduled))


def _count(names: dict[str, _Name], runs: pd.DataFrame) -> None:
    wait = runs["wait_ns"].to_numpy()
    took = runs["end_ns"].to_numpy() - runs["begin_ns"].to_numpy()
    took = np.where(runs["end_ns"] < 0, -1, took)
    codes = runs["name"].array.codes
    for code in np.unique(codes).tolist():
        own = codes == code
        name = str(runs["name"].cat.categories[code]) if code >= 0 else ""
        one = names.setdefault(name, _Name())
        one.count += int(own.sum())
        one.wait.add(wait[own & (wait >= 0)])
        one.took.add(took[own & (took >= 0)])


def _busiest(names: dict[str, _Name]) -> Iterator[Busy]:
    whole = sum(one.count for one in names.values())
    for name, one in sorted(names.items(), key=lambda one: (-one[1].count, one[0]))[:BUSIEST]:
        yield Busy(name, one.count / whole, _pair(one.wait), _pair(one.took))


def _pair(times: Times) -> tuple[float, float] | None:
    found = times.percentiles()
    return None if found is None else (found["p50_ns"], found["p99_ns"])


def _covers(one: Span | FindingMark, time_ns: int) -> bool:
    return one.begin_ns <= time_ns <= one.end_ns
