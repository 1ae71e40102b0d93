"""Recordings as typed frames: events, instances, contexts, threads, findings (docs/analysis.md).

``open_traces("folder")`` takes what ``load`` takes. Each frame is made when it is first asked
for and kept: ``traces.instances`` of all recordings together, ``traces[0].instances`` of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from qtrace.analysis.actors import contexts_of, threads_of
from qtrace.analysis.durations import run_durations
from qtrace.analysis.explain import explain
from qtrace.analysis.instances import pair_instances
from qtrace.analysis.lint import LintResult, run_lints
from qtrace.analysis.load import files
from qtrace.analysis.runs import runs_of
from qtrace.analysis.stranded import Proof, proofs
from qtrace.analysis.unfinished import latest_ends, unfinished
from qtrace.analysis.verdicts import classify, finding_rows
from qtrace.trace.reader import Trace, read_trace

# As many recordings as are named where several are shown.
NAMED = 4


class AnalysedTrace:
    """One recording.

    Attributes:
        trace: what the reader gave; ``path``, ``header``, ``detach``, ``losses``, ``exit``,
            ``lost_events``, ``warnings`` and ``complete`` are its own.
    """

    def __init__(self, source: str | Path | Trace) -> None:
        self._source = source

    def __repr__(self) -> str:
        return f"<AnalysedTrace {self.path}>"

    @cached_property
    def trace(self) -> Trace:
        """Raises TraceUnreadable: no such file, no trace, a broken one."""
        return self._source if isinstance(self._source, Trace) else read_trace(self._source)

    @property
    def path(self) -> Path:
        """The file."""
        return self._source.path if isinstance(self._source, Trace) else Path(self._source)

    @property
    def header(self) -> dict[str, Any]:
        """The attach row's detail: ``target``, ``watched``, with `--all` also ``all``."""
        return self.trace.header

    @property
    def detach(self) -> dict[str, Any]:
        """The detach row's detail; empty when the trace was cut off."""
        return self.trace.detach

    @property
    def losses(self) -> pd.DataFrame:
        """Intervals in which events were lost."""
        return self.trace.losses

    @property
    def exit(self) -> dict[str, Any] | None:
        """The exit row's detail, None when the target outlived the recording."""
        return self.trace.exit

    @property
    def lost_events(self) -> int:
        """How many events were lost."""
        return self.trace.lost_events

    @property
    def warnings(self) -> list[str]:
        """One sentence for each thing that was skipped or is missing."""
        return self.trace.warnings

    @property
    def complete(self) -> bool:
        """Nothing is missing at its end: it has its detach row."""
        return self.trace.complete

    @property
    def every(self) -> bool:
        """It has every bottom half (`--all`), not only watched ones."""
        return "all" in self.header

    @property
    def watched(self) -> list[str]:
        """The names of the bottom halves that the recording watched."""
        return [item["name"] for item in self.header["watched"]]

    @property
    def events(self) -> pd.DataFrame:
        """One row per event, in time order."""
        return self.trace.frame

    @cached_property
    def instances(self) -> pd.DataFrame:
        """One row per instance, with its verdict, in the order of their first event."""
        return classify(pair_instances(self.events, self.losses), self.trace)

    @cached_property
    def proofs(self) -> dict[int, Proof]:
        """The two looks that prove each stranded instance, by its index in ``instances``."""
        return proofs(self.instances, self.trace)

    @cached_property
    def contexts(self) -> pd.DataFrame:
        """One row per AioContext: what was scheduled into it and who ran it."""
        return contexts_of(self.instances)

    @cached_property
    def threads(self) -> pd.DataFrame:
        """One row per thread: what it scheduled and ran."""
        return threads_of(self.events, self.instances)

    @cached_property
    def findings(self) -> pd.DataFrame:
        """The watched instances whose verdict is a finding; ``instance`` leads back to them."""
        return finding_rows(self.instances, self.watched)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per run, in time order: its end, and the runs around it (analysis/runs.py)."""
        return runs_of(self.events, self.durations, self.instances, self.all_losses)

    @cached_property
    def durations(self) -> pd.DataFrame:
        """How long each run with a known end took (analysis/durations.py)."""
        return run_durations(self.events, self.all_losses)

    @cached_property
    def unfinished(self) -> pd.Series:
        """The runs that had not come to an end: for how long at least, in ns, by their index in
        ``runs`` (analysis/unfinished.py)."""
        return unfinished(self.runs, self.latest_ends, self.trace, self.all_losses)

    @cached_property
    def latest_ends(self) -> Any:
        """When each of ``runs`` had ended at the latest (analysis/unfinished.py)."""
        return latest_ends(self.runs, self.trace)

    @property
    def all_losses(self) -> pd.DataFrame:
        """``losses``, and those of rows on which no verdict depends: returns of watched ones."""
        parts = [part for part in (self.losses, self.trace.step_losses) if len(part)]
        return pd.concat(parts, ignore_index=True) if parts else self.losses

    def lint(
        self,
        names: Iterable[str] | None = None,
        thresholds: Mapping[str, float | str] | None = None,
    ) -> list[LintResult]:
        """What the lints say of it, see ``run_lints``."""
        return run_lints([self], names, thresholds)

    def evidence(self, rows: Iterable[int]) -> pd.DataFrame:
        """The rows of ``events`` with these numbers (column ``row``), in time order."""
        return self.events[self.events["row"].isin(list(rows))]

    def explain(self, instance: int) -> str:
        """What became of an instance and why, in prose (analysis/explain.py).

        Raises:
            IndexError: there is no instance of that number.
        """
        if not 0 <= instance < len(self.instances):
            raise IndexError(f"no instance {instance}: there are {len(self.instances)}")
        return explain(self, int(instance))


class Traces(Sequence[AnalysedTrace]):
    """Several recordings; the frames are of all of them, with a leading column ``trace``."""

    def __init__(self, sources: Iterable[str | Path | Trace | AnalysedTrace]) -> None:
        self._traces = [
            source if isinstance(source, AnalysedTrace) else AnalysedTrace(source)
            for source in sources
        ]

    def __repr__(self) -> str:
        names = ", ".join(trace.path.name for trace in self._traces[:NAMED])
        return f"<Traces: {len(self)}: {names}{', ...' if len(self) > NAMED else ''}>"

    def __len__(self) -> int:
        return len(self._traces)

    def __iter__(self) -> Iterator[AnalysedTrace]:
        return iter(self._traces)

    @overload
    def __getitem__(self, index: int) -> AnalysedTrace: ...

    @overload
    def __getitem__(self, index: slice) -> Traces: ...

    def __getitem__(self, index: int | slice) -> AnalysedTrace | Traces:
        found = self._traces[index]
        return Traces(found) if isinstance(found, list) else found

    @property
    def complete(self) -> bool:
        """Nothing is missing at any of their ends."""
        return all(trace.complete for trace in self)

    @property
    def events(self) -> pd.DataFrame:
        """The events of all of them, one trace after the other."""
        return self._together([trace.events for trace in self])

    @property
    def instances(self) -> pd.DataFrame:
        """The instances of all of them."""
        return self._together([trace.instances for trace in self])

    @property
    def contexts(self) -> pd.DataFrame:
        """The contexts of all of them."""
        return self._together([trace.contexts for trace in self])

    @property
    def threads(self) -> pd.DataFrame:
        """The threads of all of them."""
        return self._together([trace.threads for trace in self])

    @property
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
        return run_lints(self, names, thresholds)

    def explain(self, instance: int) -> str:
        """What became of an instance, by its index in ``instances``.

        Raises:
            IndexError: there is no instance of that number.
        """
        number = instance
        for trace in self:
            if 0 <= number < len(trace.instances):
                return trace.explain(number)
            number -= len(trace.instances)
        raise IndexError(f"no instance {instance}")

    def _together(self, parts: list[pd.DataFrame]) -> pd.DataFrame:
        number, names = pd.factorize(pd.Index([str(trace.path) for trace in self]))
        codes = np.repeat(number, [len(part) for part in parts])
        paths = pd.CategoricalDtype(names)
        columns: dict[str, Any] = {"trace": pd.Categorical.from_codes(codes, dtype=paths)}
        for column in parts[0].columns if parts else []:
            columns[str(column)] = _stacked([part[column] for part in parts])
        return pd.DataFrame(columns)


def _stacked(parts: list[pd.Series]) -> Any:
    """Categories stay categories: pandas makes objects of them where they differ."""
    if len(parts) == 1:
        return parts[0].array
    if isinstance(parts[0].dtype, pd.CategoricalDtype):
        return union_categoricals(parts)
    return pd.concat(parts, ignore_index=True).array


Source = str | Path | Trace | AnalysedTrace | Iterable[str | Path | Trace]


def open_traces(source: Source) -> Traces:
    """Open a trace, a folder of them, a glob, or a list of these; nothing is read yet.

    What is open already passes through, with all that it has computed.

    Raises:
        TraceUnreadable: a folder or a glob holds no trace.
    """
    if isinstance(source, Traces):
        return source
    return Traces([source] if isinstance(source, AnalysedTrace) else files(source))
