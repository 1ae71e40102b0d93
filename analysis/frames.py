"""The frames of one recording: each is made when it is first asked for, and kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import Numbers, code_of
from qtrace.analysis.brackets import Mask
from qtrace.analysis.contexts import contexts_of
from qtrace.analysis.held import held
from qtrace.analysis.instances import KINDS, pair_instances
from qtrace.analysis.jobs import jobs_of
from qtrace.analysis.losses import joined
from qtrace.analysis.qmp_commands import carried_out, commands_of, qmp_rows
from qtrace.analysis.runs import last_moments, latest_ends, runs_of, unfinished, watched_until
from qtrace.analysis.stranded import Proof, proofs
from qtrace.analysis.stuck import Away, threads_away
from qtrace.analysis.threads import threads_of
from qtrace.analysis.timing import durations, run_durations, waits
from qtrace.analysis.verdicts import classify, finding_rows
from qtrace.trace.reader import TraceFile, read_trace


class Part(Protocol):
    """A recording, or a stretch of one that is read part by part (analysis/slices.py): what folds
    are shown, one part after the other. See ``Frames`` for the frames.

    Attributes:
        own, own_runs: which of the instances and runs are this part's; the others are from before.
            Over all parts each is in one.
        first_event: the position of the first event that is.
        number: of each instance its index in the recording.
        is_last: nothing follows.
        watched_until: see ``analysis/runs.py``; of the last part.
        idle: by context, when the last run before this part had ended.
        since: moments, in order: since when what is pending at the end has been, and has had nobody
            of its context run.
        unfinished: see ``Frames``; of the last part those of the whole recording.
    """

    @property
    def file(self) -> TraceFile: ...
    @property
    def events(self) -> pd.DataFrame: ...
    @property
    def instances(self) -> pd.DataFrame: ...
    @property
    def runs(self) -> pd.DataFrame: ...
    @property
    def durations(self) -> pd.DataFrame: ...
    @property
    def latest_ends(self) -> Numbers: ...
    @property
    def proofs(self) -> dict[int, Proof]: ...
    @property
    def own(self) -> Mask: ...
    @property
    def own_runs(self) -> Mask: ...
    @property
    def first_event(self) -> int: ...
    @property
    def number(self) -> Numbers: ...
    @property
    def is_last(self) -> bool: ...
    @property
    def watched_until(self) -> int: ...
    @property
    def idle(self) -> Mapping[str, int]: ...
    @property
    def since(self) -> Numbers: ...
    @property
    def unfinished(self) -> pd.Series: ...


@dataclass
class Stretch:
    """A ``Part`` that is not all of a recording."""

    file: TraceFile
    events: pd.DataFrame
    instances: pd.DataFrame
    runs: pd.DataFrame
    durations: pd.DataFrame
    latest_ends: Numbers
    own: Mask
    own_runs: Mask
    first_event: int
    number: Numbers
    is_last: bool
    watched_until: int
    idle: Mapping[str, int]
    since: Numbers = field(default_factory=lambda: np.empty(0, np.int64))

    @cached_property
    def unfinished(self) -> pd.Series:
        """See ``Part``."""
        if not self.is_last:
            return pd.Series([], dtype=np.int64)
        losses = joined(self.file.losses, self.file.step_losses)
        return unfinished(self.runs, self.latest_ends, self.file, self.watched_until, losses)

    @cached_property
    def proofs(self) -> dict[int, Proof]:
        """As ``Frames.proofs``: only what is pending at the end is stranded."""
        return proofs(self.instances, self.file) if self.is_last else {}


class Frames:
    """What lints, explanations and pictures work on (docs/analysis.md).

    In all frames an absent number is ``<NA>`` and an absent text is empty; an address is 0 where
    it is not known, and a stack is folded as in the file: ``root;...;leaf``.
    """

    def __init__(self, source: str | Path | TraceFile, only: Collection[str] | None = None) -> None:
        self._source, self._only = source, only

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}>"

    @cached_property
    def file(self) -> TraceFile:
        """What the reader gives. Raises TraceUnreadable: no such file, no trace, a broken one."""
        source = self._source
        return source if isinstance(source, TraceFile) else read_trace(source, self._only)

    def read(self) -> None:
        """Read it in one piece, for who needs frames of all of it."""
        _file = self.file

    @property
    def view(self) -> Frames:
        """What is to be led past folds: it, or a long recording part by part (``Trace``)."""
        return self

    @property
    def is_read(self) -> bool:
        """It has been read already, or is a part of what the file has."""
        known = isinstance(self._source, TraceFile) or "file" in self.__dict__
        return known or self._only is not None

    @property
    def path(self) -> Path:
        """The file's."""
        return self._source.path if isinstance(self._source, TraceFile) else Path(self._source)

    @property
    def told(self) -> TraceFile:
        """What ``file`` says of itself and what comes seldom; rows of bottom halves it may lack."""
        return self.file

    @property
    def header(self) -> dict[str, Any]:
        """The attach row's detail: ``target``, ``watched``, with `--all` also ``all``."""
        return self.told.header

    @property
    def detach(self) -> dict[str, Any]:
        """The detach row's detail; empty when the trace was cut off."""
        return self.told.detach

    @property
    def exit(self) -> dict[str, Any] | None:
        """The exit row's detail, None when the target outlived the recording."""
        return self.told.exit

    @property
    def warnings(self) -> list[str]:
        """One sentence for each thing that was skipped or is missing."""
        return self.told.warnings

    @property
    def complete(self) -> bool:
        """Nothing is missing at its end: it has its detach row."""
        return self.told.complete

    @property
    def every(self) -> bool:
        """It has every bottom half (`--all`), not only watched ones."""
        return "all" in self.header

    @property
    def watched(self) -> list[str]:
        """The names of the bottom halves that the recording watched."""
        return [item["name"] for item in self.header["watched"]]

    @property
    def lost_events(self) -> int:
        """How many events were lost."""
        return self.told.lost_events

    @property
    def losses(self) -> pd.DataFrame:
        """Intervals in which events were lost."""
        return self.told.losses

    @property
    def all_losses(self) -> pd.DataFrame:
        """``losses``, and those of rows on which no verdict depends: returns of watched ones."""
        return joined(self.losses, self.told.step_losses)

    @property
    def qmp_losses(self) -> pd.DataFrame:
        """Intervals in which steps of QMP commands or changes of jobs may have been lost."""
        return joined(self.told.qmp_losses, self.told.step_losses)

    @property
    def events(self) -> pd.DataFrame:
        """One row per event, in time order."""
        return self.file.frame

    @cached_property
    def instances(self) -> pd.DataFrame:
        """One row per instance, with its verdict, in the order of their first event."""
        return classify(pair_instances(self.events, self.losses), self.file)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per run, in time order: its end, and the runs around it (analysis/runs.py)."""
        return runs_of(self.events, self.durations, self.instances, self.all_losses)

    @cached_property
    def qmp_steps(self) -> pd.DataFrame:
        """The ``qmp`` rows with their ``step`` and ``number`` (analysis/qmp_commands.py)."""
        return qmp_rows(self.told.frame)

    @cached_property
    def commands(self) -> pd.DataFrame:
        """One row per QMP command: when it was taken, begun, done and answered."""
        found = commands_of(self.qmp_steps)
        times = [found[column] for column in ("taken_ns", "begun_ns", "ended_ns", "replied_ns")]
        first = times[0].fillna(times[1]).fillna(times[2]).fillna(times[3])
        return found.assign(wall_clock=self.wall_clock(first))

    @cached_property
    def jobs(self) -> pd.DataFrame:
        """One row per job: when it was created, ran, was concluded and dismissed."""
        found = jobs_of(self.told.frame)
        return found.assign(wall_clock=self.wall_clock(found["time_ns"]))

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
        found = finding_rows(self.instances, self.watched)
        return found.assign(wall_clock=self.wall_clock(found["time_ns"]))

    @cached_property
    def carried_out(self) -> pd.DataFrame:
        """One row per QMP command that was begun, and until when it lasted at least."""
        return carried_out(
            self.told, self.qmp_steps, self.away, self.qmp_losses, self.view.watched_until
        )

    @cached_property
    def proofs(self) -> dict[int, Proof]:
        """The two looks that prove each stranded instance, by its index in ``instances``."""
        return proofs(self.instances, self.file)

    @cached_property
    def away(self) -> list[Away]:
        """The times for which a loop's thread was seen not to come back (analysis/stuck.py)."""
        return threads_away(self.told)

    @cached_property
    def held(self) -> list[dict[str, Any]]:
        """The times for which somebody held the target (analysis/held.py)."""
        return held(self.told)

    @cached_property
    def durations(self) -> pd.DataFrame:
        """How long each run with a known end took (analysis/timing.py)."""
        return run_durations(self.events, self.all_losses)

    @cached_property
    def unfinished(self) -> pd.Series:
        """The runs that had not come to an end: for how long at least, in ns, by their index in
        ``runs`` (analysis/runs.py)."""
        return unfinished(
            self.runs, self.latest_ends, self.file, self.watched_until, self.all_losses
        )

    @cached_property
    def latest_ends(self) -> Numbers:
        """When each of ``runs`` had ended at the latest (analysis/runs.py)."""
        return latest_ends(self.runs, self.events)

    @cached_property
    def watched_until(self) -> int:
        """Until when a return would surely have been recorded (analysis/runs.py)."""
        return watched_until(self.file, last_moments(self.events))

    @property
    def own(self) -> Mask:
        """See ``Part``: it is one of its own."""
        return np.ones(len(self.instances), np.bool_)

    @property
    def own_runs(self) -> Mask:
        """See ``Part``."""
        return np.ones(len(self.runs), np.bool_)

    @property
    def first_event(self) -> int:
        """See ``Part``."""
        return 0

    @property
    def number(self) -> Numbers:
        """See ``Part``."""
        return np.arange(len(self.instances))

    @property
    def is_last(self) -> bool:
        """See ``Part``."""
        return True

    @property
    def idle(self) -> Mapping[str, int]:
        """See ``Part``."""
        return {}

    @property
    def since(self) -> Numbers:
        """See ``Part``."""
        return np.empty(0, np.int64)

    @cached_property
    def names(self) -> list[str]:
        """The bottom halves in the order in which they were seen."""
        own = code_of(self.events["event"], KINDS) >= 0
        return list(map(str, self.events.loc[own, "name"].drop_duplicates()))

    def parts(self) -> Iterator[Part]:
        """It, part by part, each with the same frames."""
        yield self

    def evidence(self, rows: Iterable[int]) -> pd.DataFrame:
        """The rows of ``events`` with these numbers (column ``row``), in time order."""
        return self.events[self.events["row"].isin(list(rows))]

    def wall_clock(self, times: pd.Series) -> pd.Series:
        """Times of any frame (``time_ns``, ``scheduled_ns`` and so on) as the host's clock told
        them: datetime64[ns, UTC], right to a millisecond; ``NaT`` where one is absent, and all of
        them where the recording does not tell (``wall_clock`` in its header)."""
        text = str(self.header.get("wall_clock", ""))
        began = pd.to_datetime(pd.Series(text, times.index), utc=True, errors="coerce")
        rows = self.told.frame
        first = rows.loc[(rows["event"] == "attach").to_numpy(), "time_ns"]
        since = times.astype("Int64") - int(first.iloc[0])
        found: pd.Series = began + pd.to_timedelta(since, unit="ns")
        return found.astype("datetime64[ns, UTC]")


class Folded(Protocol):
    """What takes a recording part by part."""

    def add(self, part: Part) -> None:
        """Look at what is the part's own."""


def fold_all(trace: Frames, folds: Iterable[Folded]) -> None:
    """Lead a recording past them, once."""
    wanted = list(folds)
    for part in trace.parts():
        for fold in wanted:
            fold.add(part)


def own_times(part: Part) -> Iterator[tuple[str, pd.DataFrame]]:
    """``waits`` and ``durations`` of what is a part's own, as ``wait`` and ``duration``."""
    yield "wait", waits(part.instances, part.own)
    yield "duration", durations(part.runs, part.own_runs)
