"""A trace file to one typed frame, in compact columns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from qtrace.event_kinds import BOTTOM_HALF, NAMES
from qtrace.trace import details
from qtrace.trace.columns import FIRST_ROW, TEXT_COLUMNS
from qtrace.trace.edges import beyond
from qtrace.trace.gaps import Gap
from qtrace.trace.missing import as_losses, missing_rows
from qtrace.trace.schema import COLUMNS, INTEGER_COLUMNS
from qtrace.trace.stream import tables_of

# What a column is before its first row.
_KINDS = (
    dict.fromkeys(COLUMNS, np.dtype(np.uint64))
    | dict.fromkeys((*INTEGER_COLUMNS, "row"), np.dtype(np.int64))
    | dict.fromkeys(TEXT_COLUMNS, np.dtype(np.int8))
)


@dataclass(frozen=True)
class Extent:
    """How much of a trace was read: its recorder may be writing still.

    Attributes:
        files: of a chain; empty where it is a file.
        rows: how many.
        latest_ns: when the last of what probes have noted was, those behind the recording's end
            counted, too (qtrace/trace/edges.py).
    """

    files: tuple[Path, ...]
    rows: int
    latest_ns: int


@dataclass(frozen=True)
class TraceFile:
    """What the file of one recording holds.

    Attributes:
        path: the file.
        frame: one row per event in time order. ``time_ns`` (int64, CLOCK_MONOTONIC
            nanoseconds), ``tid`` (int64, 0 = none), ``ctx``, ``bh``, ``callback``, ``opaque``
            (uint64 addresses, 0 = absent), all other columns of the schema as categories of
            text, escaped as in the file, and ``row`` (int64, the row in the file). Rows that
            probes wrote while others were being taken off are left out (trace/edges.py).
        header: the attach row's detail.
        losses: one row per interval in which events were lost: ``since_ns``, ``until_ns``,
            ``count`` (int64), ``every`` (of the probes of `--all`, not of watched ones).
        step_losses: likewise, of ``return`` rows, on which no verdict depends (in recordings of
            before qtrace told them apart, of ``qmp`` and ``job`` rows, too).
        qmp_losses: likewise, of ``qmp`` and ``job`` rows.
        lost_events: how many events were lost.
        exit: the exit row's detail, or None when the target was still there at the end.
        detach: the detach row's detail; empty when the trace was cut off.
        gaps: files of its chain that are missing; the losses and ``lost_events`` have them, too.
        warnings: one sentence for each thing that was skipped or is missing.
        complete: it has its detach row, so nothing is missing at its end.
        read: of a trace of which not all rows are in ``frame`` (trace/outline.py): what there was.
    """

    path: Path
    frame: pd.DataFrame
    header: dict[str, Any]
    losses: pd.DataFrame
    step_losses: pd.DataFrame
    qmp_losses: pd.DataFrame
    lost_events: int
    exit: dict[str, Any] | None
    detach: dict[str, Any]
    warnings: list[str]
    complete: bool
    gaps: tuple[Gap, ...] = ()
    read: Extent | None = None


def read_trace(path: str | Path, only: Collection[str] | None = None) -> TraceFile:
    """Read a CSV or Parquet trace.

    Args:
        only: leave out the events of bottom halves of other names (in bounded memory).

    Unknown columns and event kinds are skipped with a warning, a cut last row too.

    Raises:
        TraceUnreadable: no such file, no trace, a broken one, or one of another major version.
    """
    path = Path(path)
    warnings: list[str] = []
    frame = _frame(tables_of(path, warnings), _chooser(only), warnings)
    facts = details.file_facts(path, frame)
    missing = missing_rows(frame, facts.detach, only, facts.gaps)
    late = beyond(frame, facts.header, facts.detach, gone=facts.exit is not None)
    if late.any():
        frame = frame[~late].reset_index(drop=True)
    return as_file(path, frame, facts, missing, warnings)


def as_file(
    path: Path,
    frame: pd.DataFrame,
    facts: details.FileFacts,
    missing: dict[str, int],
    warnings: list[str],
    read: Extent | None = None,
) -> TraceFile:
    """With what is missing (``missing_rows``) among its losses."""
    warnings += [gap.sentence for gap in facts.gaps]
    warnings += [f"{count:,} rows of {probe!r} are missing" for probe, count in missing.items()]
    steps = sum(count for probe, count in missing.items() if probe.startswith("return "))
    others = sum(missing.values()) - steps
    if not facts.complete:
        warnings.append("it was cut off: there is no detach row; what came later is not known")
    if facts.detach.get("all", {}).get("produced") == 0:
        probes = len(facts.header.get("all", []))
        warnings.append(f"not one event came of the {probes} probes of --all")
    return TraceFile(
        path=path,
        frame=frame,
        header=facts.header,
        losses=as_losses(facts.losses, others),
        step_losses=as_losses(facts.step_losses, steps),
        qmp_losses=facts.qmp_losses,
        lost_events=facts.lost_events + others + steps,
        exit=facts.exit,
        detach=facts.detach,
        warnings=warnings,
        complete=facts.complete,
        gaps=facts.gaps,
        read=read,
    )


Chooser = Callable[[pa.Table], pa.ChunkedArray] | None


def _chooser(only: Collection[str] | None) -> Chooser:
    """Which rows to keep: those without a bottom half, and those of some."""
    if only is None:
        return None
    wanted, named = pa.array(list(only), pa.string()), pa.array(BOTTOM_HALF)
    return lambda table: pc.or_(
        pc.is_in(table["name"].cast(pa.string()), value_set=wanted),
        pc.invert(pc.is_in(table["event"].cast(pa.string()), value_set=named)),
    )


def _frame(tables: Iterable[pa.Table], choose: Chooser, warnings: list[str]) -> pd.DataFrame:
    """The rows in time order, with their numbers in the file."""
    columns = Columns()
    parts = {column: Growing(kind) for column, kind in _KINDS.items()}
    first = FIRST_ROW
    for whole in tables:
        table, numbers = whole, np.arange(first, first + len(whole))
        first += len(whole)
        if choose is not None:
            keep = choose(whole)
            table, numbers = whole.filter(keep), numbers[keep.to_numpy()]
        for column, values in columns.chunks(table, numbers):
            parts[column].append(values)
    found = {column: part.values() for column, part in parts.items()}
    return known_kinds(columns.frame(in_time_order(found)), warnings)


Arrays = dict[str, npt.NDArray[Any]]


def in_time_order(columns: Arrays) -> Arrays:
    """Rows, those of the same time as they stand in the file."""
    times = columns["time_ns"]
    if (times[1:] >= times[:-1]).all():
        return columns
    order = np.argsort(times, kind="stable")
    return {column: values[order] for column, values in columns.items()}


class Columns:
    """Tables as arrays: a text is its number, the same in all of them."""

    def __init__(self) -> None:
        self._texts = {column: Texts() for column in TEXT_COLUMNS}

    def chunks(
        self, table: pa.Table, numbers: npt.NDArray[np.int64]
    ) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Each column, piece by piece, and the numbers of the rows as ``row``."""
        for column in COLUMNS:
            known = self._texts.get(column)
            if not len(table):
                yield column, np.empty(0, _KINDS[column])
            for chunk in table[column].chunks:
                yield column, known.codes(chunk) if known else chunk.to_numpy()
        yield "row", numbers

    def arrays(self, table: pa.Table, numbers: npt.NDArray[np.int64]) -> Arrays:
        """Each column in one."""
        pieces: dict[str, list[npt.NDArray[Any]]] = {}
        for column, values in self.chunks(table, numbers):
            pieces.setdefault(column, []).append(values)
        return {column: np.concatenate(values) for column, values in pieces.items()}

    def frame(self, arrays: Arrays) -> pd.DataFrame:
        """See ``TraceFile.frame``."""
        texts = self._texts
        columns: dict[str, Any] = {
            column: texts[column].series(values) if column in texts else values
            for column, values in arrays.items()
        }
        return pd.DataFrame(columns, copy=False)


def known_kinds(frame: pd.DataFrame, warnings: list[str]) -> pd.DataFrame:
    """Without the rows of kinds that another minor version has."""
    kinds = frame["event"].cat.categories
    if kinds.isin(NAMES).all():
        return frame
    known = frame["event"].isin(NAMES).to_numpy()
    for kind, rows in frame.loc[~known].groupby("event", observed=True)["row"]:
        what = f"{len(rows):,} rows of the unknown kind {kind!r} were skipped"
        warnings.append(f"{what}, the first is row {min(rows)}")
    return frame[known].reset_index(drop=True)


class Growing:
    """A column of unknown length. What it does not use yet is no memory but addresses."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._values = np.empty(1 << 10, dtype)
        self._length = 0

    def append(self, values: npt.NDArray[Any]) -> None:
        """At the end; of a wider type all of it becomes that type."""
        length = self._length + len(values)
        dtype = np.promote_types(self._values.dtype, values.dtype)
        if length > len(self._values) or dtype != self._values.dtype:
            larger = np.empty(max(length, 2 * len(self._values)), dtype)
            larger[: self._length] = self._values[: self._length]
            self._values = larger
        self._values[self._length : length] = values
        self._length = length

    def values(self) -> npt.NDArray[Any]:
        """All of it."""
        return self._values[: self._length]


class Texts:
    """One number for each text of a column, over all its chunks; each chunk has its own."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def codes(self, chunk: pa.DictionaryArray) -> npt.NDArray[Any]:
        """The numbers of a chunk's texts, in as few bytes as will do."""
        numbers = self._numbers
        own = [numbers.setdefault(text, len(numbers)) for text in chunk.dictionary.to_pylist()]
        table: npt.NDArray[Any] = np.array(own, np.min_scalar_type(-len(numbers) - 1))
        codes: npt.NDArray[Any] = table[chunk.indices.to_numpy()]
        return codes

    def series(self, codes: npt.NDArray[Any]) -> Any:
        """The whole column as categories."""
        return pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(list(self._numbers)))
