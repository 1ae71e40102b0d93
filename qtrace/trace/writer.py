"""Events to CSV, row by row: what was written stays readable whatever happens next.

Nothing here needs pandas or pyarrow; a recorder imports it while the target runs.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from qtrace.errors import OutputExists, OutputFailed, QtraceError
from qtrace.trace.chain import tally
from qtrace.trace.schema import COLUMNS, Event, to_row

# Rows wait here for the next flush(), or until there are this many characters of them.
BUFFERED = 1 << 18


def check_kind(path: Path) -> None:
    """Raises OutputFailed for a name that tells neither CSV nor Parquet."""
    if path.suffix not in (".csv", ".parquet"):
        raise OutputFailed(
            f"{path} is neither .csv nor .parquet", "let its name end in one of them"
        )


def check_output(path: str | Path, force: bool = False) -> Path:
    """Refuse, before anything is armed or opened, a file that could not be written in the end.

    Raises:
        OutputExists: there is such a file, and no ``force``.
        OutputFailed: a folder, or a folder that is missing or read-only.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputFailed(f"{path} is a folder", "name a file in it")
    if not path.parent.is_dir():
        raise OutputFailed(f"the folder {path.parent} does not exist", "create it first")
    if path.is_file():
        if not force:
            raise OutputExists(path)
        return path.resolve()
    if not path.exists() and not os.access(path.parent, os.W_OK):
        raise OutputFailed(f"the folder {path.parent} cannot be written", "choose another one")
    return path


def output_failed(path: Path, error: OSError) -> OutputFailed:
    """The error of a write that failed, with its remedy."""
    remedy = "choose another file with -o"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = f"free some space and record again; what {path} holds up to there stays readable"
    return OutputFailed(f"cannot write {path}: {error.strerror or error}", remedy)


class Replacing:
    """A new file, or one that takes an old one's place only when it holds something.

    The old recording is still there when the new one never gets its first row: the new file
    grows beside it and is renamed by ``settle()``. Devices and pipes are written in place.
    """

    def __init__(self, path: str | Path, force: bool = False, aside: bool = False) -> None:
        """``aside``: a new one grows beside its name, too: who reads meanwhile finds it begun."""
        self.path = check_output(path, force)
        self._temporary: Path | None = None
        # Nothing has this name yet: whoever fails half-way may remove what was begun.
        self.new = not self.path.exists()
        if aside or self.path.is_file():
            self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")

    def open(self) -> io.FileIO:
        """Open for writing, unbuffered.

        Raises:
            OutputExists, OutputFailed
        """
        in_place = self._temporary is None and self.path.exists() and not self.path.is_file()
        try:
            return io.FileIO(self._temporary or self.path, "w" if in_place else "x")
        except FileExistsError as error:
            raise OutputExists(error.filename) from error
        except OSError as error:
            raise output_failed(self.path, error) from error

    def settle(self) -> None:
        """The new file holds something: let it take its name."""
        if self._temporary is not None:
            os.replace(self._temporary, self.path)
            self._temporary = None

    def discard(self) -> None:
        """Remove a file that did not take its name; one that did stays."""
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)


class CsvWriter:
    """An RFC 4180 file that holds every flushed row, also after SIGKILL of this process.

    The file is made with the first row: a recording that could not be armed leaves neither
    an empty file behind nor an earlier one damaged.

    Attributes:
        size: of the file, in bytes.
        rows: how many were taken so far, by ``chain.label``; of all files of a chain.

    Raises:
        OutputExists: ``path`` is a file already, and no ``force``.
        OutputFailed: it cannot be written.
    """

    def __init__(self, path: str | Path, force: bool = False, aside: bool = False) -> None:
        self._output = Replacing(path, force, aside)
        self._file: io.FileIO | None = None
        self._begun = False
        self.size = 0
        self.rows: Counter[str] = Counter()
        self._error: QtraceError | None = None
        self._rows = io.StringIO(newline="")
        self._csv = csv.writer(self._rows)

    @property
    def path(self) -> Path:
        """Where the rows go."""
        return self._output.path

    def write(self, events: Iterable[Event]) -> None:
        """Take the rows; they are in the file after the next ``flush()``, at the latest.

        Raises:
            OutputFailed: what was flushed before stays readable.
        """
        for event in events:
            if not self._begun:
                self._csv.writerow(COLUMNS)
                self._begun = True
            self._csv.writerow(to_row(event))
            tally(self.rows, event)
            if self._rows.tell() >= BUFFERED:
                self.flush()

    def flush(self) -> None:
        """Hand all rows to the kernel: from here on they outlive this process.

        After a failed write the file is not touched again; the same error is raised.

        Raises:
            OutputExists, OutputFailed
        """
        data = memoryview(self._rows.getvalue().encode())
        if not data:
            return
        if self._error is not None:
            raise self._error
        try:
            if self._file is None:
                self._file = self._output.open()
            while data:
                written = self._file.write(data)
                self.size += written
                data = data[written:]
            self._output.settle()
        except QtraceError as error:
            self._error = error
            raise
        except OSError as error:
            self._output.discard()
            self._error = output_failed(self.path, error)
            raise self._error from error
        self._rows.seek(0)
        self._rows.truncate()

    def rotate(self, path: Path, last: Event, first: Event) -> None:
        """Go on in the file ``path``; where it cannot be begun, all is as before.

        Args:
            last, first: of the file so far, and of the next one.

        Raises:
            OutputExists, OutputFailed
        """
        self.flush()
        following = CsvWriter(path, aside=True)
        try:
            following.write([first])
            following.flush()
            self.write([last])
            self.flush()
        finally:
            if following._error is None:
                # It stands, also where the last one lacks its end: its number of rows tells that.
                self._file, following._file = following._file, self._file
                self._output, self.size = following._output, following.size
            if following._file is not None:
                following._file.close()

    def close(self) -> None:
        """Flush and close; after a failed write, only close.

        Raises:
            OutputExists, OutputFailed
        """
        try:
            if self._error is None:
                self.flush()
        finally:
            if self._file is not None:
                self._file.close()

    def __enter__(self) -> CsvWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
