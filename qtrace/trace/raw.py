"""The raw file of `--all`: blocks of records as they came, turned into rows afterwards.

It grows by appending only, and everything that its records need to be understood stands in
it, so that whatever was written can be converted anywhere, after SIGKILL too
(docs/trace-format.md). ``RawReader`` is in raw_reader.py.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtrace.errors import OutputFailed, QtraceError
from qtrace.trace.chain import ALL, tally
from qtrace.trace.schema import COLUMNS, Event, to_row
from qtrace.trace.writer import Replacing, output_failed

if TYPE_CHECKING:
    # Whoever has records has it imported.
    import numpy as np
    import numpy.typing as npt

FORMAT = "qtrace-raw"
VERSION = [1, 0]
# Magic, kind, bytes that follow, mark: every record written later has a time after that.
BLOCK = struct.Struct("<4sIQQ")
MAGIC = b"QTRB"
RECORDS, FACTS = 1, 2
# Of the facts: what numbers in records mean, wherever these lie.
MEANINGS = {"names", "symbols", "contexts", "threads"}


class RawWriter:
    """Appends blocks. Takes rows too, so that a recorder may use it in place of a CsvWriter.

    Attributes:
        size: of the file, in bytes.
        records: how many were written; of all files of a chain.
        rows: how many rows and records were taken so far, as of a ``CsvWriter``.

    Raises:
        OutputExists, OutputFailed
    """

    def __init__(self, path: str | Path, force: bool = False, aside: bool = False) -> None:
        self._output = Replacing(path, force, aside)
        self._file: io.FileIO | None = None
        self._rows: list[list[str]] = []
        self._error: OutputFailed | None = None
        self._header = b""
        # What the numbers of the records mean, as far as it is known: each file begins with it.
        self._meanings: dict[str, dict[str, Any]] = {}
        self.size = 0
        self.records = 0
        self.rows: Counter[str] = Counter()

    @property
    def path(self) -> Path:
        return self._output.path

    def begin(self, slot: np.dtype[np.void], facts: dict[str, Any]) -> None:
        """Write the header: the records' layout, and what else is known from the start."""
        names = [name for name in slot.names or () if not name.startswith("f1")]
        fields = []
        layout: Any = slot.fields
        for name in names:
            kind, offset = layout[name][:2]
            fields.append([name, kind.base.str, int(offset), kind.shape[0] if kind.shape else 1])
        header = {
            "format": FORMAT,
            "version": VERSION,
            "record": {"size": slot.itemsize, "fields": fields},
            "columns": list(COLUMNS),
            **facts,
        }
        self._header = json.dumps(header, separators=(",", ":")).encode() + b"\n"
        self._file = self._output.open()
        self._append([self._header])
        self._output.settle()

    def rotate(self, path: Path, last: Event, first: Event) -> None:
        """See ``CsvWriter.rotate``."""
        self.flush()
        following = RawWriter(path, aside=True)
        following._file = following._output.open()
        try:
            following._append([self._header])
            following.append_facts({**self._meanings, "rows": [to_row(first)]})
            following._output.settle()
        except QtraceError:
            following._file.close()
            following._output.discard()
            raise
        try:
            self.write([last])
            self.flush()
        finally:
            if self._file is not None:
                self._file.close()
            self._file, self._output = following._file, following._output
            self.size = following.size

    def write(self, events: Iterable[Event]) -> None:
        """Rows that have no record, such as those of the watched bottom halves."""
        for event in events:
            self._rows.append(to_row(event))
            tally(self.rows, event)

    def flush(self) -> None:
        """Hand the rows to the kernel; before ``begin`` they wait."""
        if self._rows and self._file is not None:
            rows, self._rows = self._rows, []
            self.append_facts({"rows": rows})

    def append_facts(self, facts: dict[str, Any], mark: int = 0) -> None:
        for key in MEANINGS & facts.keys():
            self._meanings.setdefault(key, {}).update(facts[key])
        data = json.dumps(facts, separators=(",", ":")).encode()
        self._append([BLOCK.pack(MAGIC, FACTS, len(data), mark), data])

    def append_records(self, records: npt.NDArray[np.void]) -> None:
        """A block of records, straight from where they lie."""
        if len(records):
            data = records.view("u1")
            self._append([BLOCK.pack(MAGIC, RECORDS, len(data), 0), data])
            self.records += len(records)
            self.rows[ALL] += len(records)

    def close(self) -> None:
        if self._file is not None:
            try:
                if self._error is None:
                    self.flush()
            finally:
                self._file.close()
                self._file = None

    def _append(self, parts: list[Any]) -> None:
        if self._file is None:
            raise ValueError("no header yet")
        if self._error is not None:
            raise self._error
        try:
            for part in parts:
                view = memoryview(part)
                while view:
                    written = os.write(self._file.fileno(), view)
                    self.size += written
                    view = view[written:]
        except OSError as error:
            # What follows half a block could not be read.
            self._error = output_failed(self.path, error)
            raise self._error from error
