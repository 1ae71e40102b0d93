"""Recordings opened: the frames of one or of several, lints and explanations (docs/analysis.md).

``open_traces("folder")`` takes a file, a folder, a glob or a list of these. Each frame is made when
it is first asked for and kept: ``traces.instances`` of all recordings together,
``traces[0].instances`` of one.
"""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from qtrace.analysis.explain import explain
from qtrace.analysis.frames import Frames, fold_all
from qtrace.analysis.instances import pair_instances
from qtrace.analysis.lint import LintResult
from qtrace.analysis.lints import run_lints
from qtrace.analysis.overview import Overview
from qtrace.analysis.selection import Selecting
from qtrace.analysis.slices import Outlined, Sliced
from qtrace.errors import NoSuchInstance, TraceUnreadable
from qtrace.trace.chain import is_chain, shown
from qtrace.trace.outline import is_long
from qtrace.trace.reader import TraceFile, read_trace
from qtrace.trace.stream import Progress

SUFFIXES = (".csv", ".parquet")
# As many recordings as are named where several are shown.
NAMED = 4
# By what a schedule is the same as a bottom half in QEMU's memory.
SAME = ["callback", "ctx", "opaque"]
# A recording of more rows is judged part by part.
LONG = 4_000_000


class Trace(Frames):
    """One recording: its frames, what lints say of them, and what became of one instance."""

    # Told how much of a long recording has been read, each time that it is.
    progress: Progress = staticmethod(lambda _done, _all: None)

    @property
    def view(self) -> Frames:
        """It, or a long one part by part: what is folded is led past this. Its frames are all the
        same those of all of it, in as much memory as that takes."""
        # Not kept where it is the recording itself: its frames would outlive who drops it.
        if self.is_read or not is_long(self.path, LONG):
            return self
        return self._parts or self

    @property
    def told(self) -> TraceFile:
        """See ``Frames``: for this a long recording is not read in one piece."""
        view = self.view
        return self.file if view is self else view.file

    @cached_property
    def _parts(self) -> Outlined | None:
        """None where it can only be read in one piece."""
        sliced = Sliced.of(self.path, progress=self.progress)
        return None if sliced is None else Outlined(sliced)

    def lint(
        self,
        names: Iterable[str] | None = None,
        thresholds: Mapping[str, float | str] | None = None,
    ) -> list[LintResult]:
        """What the lints say of it, see ``run_lints``."""
        return run_lints([self.view], names, thresholds)

    @cached_property
    def overview(self) -> Overview:
        """What only all of it tells of one of its instances."""
        found = Overview()
        fold_all(self.view, [found])
        return found

    def explain(self, instance: int) -> str:
        """What became of an instance and why, in prose (analysis/explain.py).

        Raises:
            IndexError: there is no instance of that number.
        """
        found = Selecting(self.view, [instance])
        fold_all(self.view, [found])
        try:
            (number,) = found.end()
        except NoSuchInstance as error:
            count = self.overview.instances
            raise IndexError(f"no instance {instance}: there are {count}") from error
        (one,) = found.rows_of([number]).to_dict("records")
        return explain(self.view, self.overview, {number: one})[0]


class Traces(Sequence[Trace]):
    """Several recordings; the frames are of all of them, with a leading column ``trace``."""

    def __init__(
        self,
        sources: Iterable[str | Path | TraceFile | Trace],
        only: Collection[str] | None = None,
    ) -> None:
        self._traces = [
            source if isinstance(source, Trace) else Trace(source, only) for source in sources
        ]

    def __repr__(self) -> str:
        names = ", ".join(trace.path.name for trace in self._traces[:NAMED])
        return f"<Traces: {len(self)}: {names}{', ...' if len(self) > NAMED else ''}>"

    def __len__(self) -> int:
        return len(self._traces)

    def __iter__(self) -> Iterator[Trace]:
        return iter(self._traces)

    @overload
    def __getitem__(self, index: int) -> Trace: ...

    @overload
    def __getitem__(self, index: slice) -> Traces: ...

    def __getitem__(self, index: int | slice) -> Trace | Traces:
        found = self._traces[index]
        return Traces(found) if isinstance(found, list) else found

    @property
    def complete(self) -> bool:
        """Nothing is missing at any of their ends."""
        return all(trace.complete for trace in self)

    @cached_property
    def events(self) -> pd.DataFrame:
        """The events of all of them, one trace after the other."""
        return self._together([trace.events for trace in self])

    @cached_property
    def instances(self) -> pd.DataFrame:
        """The instances of all of them."""
        return self._together([trace.instances for trace in self])

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The runs of all of them; ``outer`` and ``parent`` are indexes into this frame,
        ``instance`` into ``instances`` here."""
        parts, run, instance = [], 0, 0
        for trace in self:
            own = trace.runs
            outer, parent = own["outer"] + run, own["parent"] + run
            parts.append(
                own.assign(instance=own["instance"] + instance, outer=outer, parent=parent)
            )
            run += len(own)
            instance += len(trace.instances)
        return self._together(parts)

    @cached_property
    def commands(self) -> pd.DataFrame:
        """The QMP commands of all of them."""
        return self._together([trace.commands for trace in self])

    @cached_property
    def jobs(self) -> pd.DataFrame:
        """The jobs of all of them."""
        return self._together([trace.jobs for trace in self])

    @cached_property
    def contexts(self) -> pd.DataFrame:
        """The contexts of all of them."""
        return self._together([trace.contexts for trace in self])

    @cached_property
    def threads(self) -> pd.DataFrame:
        """The threads of all of them."""
        return self._together([trace.threads for trace in self])

    @cached_property
    def findings(self) -> pd.DataFrame:
        """The findings of all of them; ``instance`` is the index into ``instances`` here."""
        parts, first = [], 0
        for trace in self:
            parts.append(trace.findings.assign(instance=trace.findings["instance"] + first))
            first += len(trace.instances)
        return self._together(parts)

    def lint(
        self,
        names: Iterable[str] | None = None,
        thresholds: Mapping[str, float | str] | None = None,
    ) -> list[LintResult]:
        """What the lints say of each of them, see ``run_lints``."""
        return run_lints([trace.view for trace in self], names, thresholds)

    def explain(self, instance: int) -> str:
        """What became of an instance, by its index in ``instances``.

        Raises:
            IndexError: there is no instance of that number.
        """
        number = instance
        for trace in self:
            if 0 <= number < trace.overview.instances:
                return trace.explain(number)
            number -= trace.overview.instances
        raise IndexError(f"no instance {instance}")

    def _together(self, parts: list[pd.DataFrame]) -> pd.DataFrame:
        number, names = pd.factorize(pd.Index([str(trace.path) for trace in self]))
        codes = np.repeat(number, [len(part) for part in parts])
        paths = pd.CategoricalDtype(names)
        columns: dict[str, Any] = {"trace": pd.Categorical.from_codes(codes, dtype=paths)}
        for column in parts[0].columns if parts else []:
            columns[str(column)] = _stacked([part[column] for part in parts])
        return pd.DataFrame(columns)


Source = str | Path | TraceFile | Trace | Iterable[str | Path | TraceFile]


def open_traces(source: Source, only: Collection[str] | None = None) -> Traces:
    """Open a trace, a folder of them, a glob, or a list of these; nothing is read yet.

    What is open already passes through, with all that it has computed.

    Args:
        only: read no events of other bottom halves than these (`--all` records millions).

    Raises:
        TraceUnreadable: a folder or a glob holds no trace.
    """
    if isinstance(source, Traces):
        return source
    return Traces([source] if isinstance(source, Trace) else _named(source), only)


def pending_since(path: Path) -> dict[tuple[int, int, int], int]:
    """The time (CLOCK_MONOTONIC ns) of the oldest schedule that nothing has answered yet, by
    (callback, ctx, opaque). The trace may still be growing.

    Raises TraceUnreadable.
    """
    instances = pair_instances(read_trace(path).frame)
    waiting = instances[(instances["end"] == "") & instances["scheduled_ns"].notna()]
    oldest = waiting.sort_values("scheduled_ns").drop_duplicates(SAME)
    keys = (oldest[column].astype("uint64").tolist() for column in SAME)
    return dict(zip(zip(*keys, strict=True), oldest["scheduled_ns"].tolist(), strict=True))


def _named(
    source: str | Path | TraceFile | Iterable[str | Path | TraceFile],
) -> list[Path | TraceFile]:
    """What a source names, unread."""
    if isinstance(source, TraceFile):
        return [source]
    if isinstance(source, (str, Path)):
        return _once(map(shown, _files(Path(source))))
    return _once(found for item in source for found in _named(item))


def _once(sources: Iterable[Path | TraceFile]) -> list[Path | TraceFile]:
    """A chain is one recording, whichever of its files are named."""
    found: list[Path | TraceFile] = []
    chains: set[Path] = set()
    for source in sources:
        if isinstance(source, Path) and is_chain(source):
            if source in chains:
                continue
            chains.add(source)
        found.append(source)
    return found


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(one for one in path.iterdir() if one.suffix in SUFFIXES and one.is_file())
    elif glob.has_magic(str(path)) and not path.exists():
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    else:
        return [path]
    if not found:
        raise TraceUnreadable(
            f"no trace at {path}", f"name a file, or a folder with {' or '.join(SUFFIXES)} files"
        )
    return found


def _stacked(parts: list[pd.Series]) -> Any:
    """Categories stay categories: pandas makes objects of them where they differ."""
    if len(parts) == 1:
        return parts[0].array
    if isinstance(parts[0].dtype, pd.CategoricalDtype):
        return union_categoricals(parts)
    return pd.concat(parts, ignore_index=True).array
