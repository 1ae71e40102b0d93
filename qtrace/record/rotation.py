"""A recording that goes on in new files, of which the latest stay (`--rotate`, `--keep`)."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

from qtrace.errors import OutputFailed
from qtrace.trace import chain
from qtrace.trace.chain import Link
from qtrace.trace.raw import RawWriter
from qtrace.trace.schema import Event
from qtrace.trace.writer import CsvWriter

# For so long a hit may be on its way from the clock to its row, where its thread was preempted.
SLACK_NS = 1_000_000_000


class Rotation:
    """The files of one recording.

    Attributes:
        name: what was asked for; no file has it.
        removed: how many files were removed, as there are newer ones.
    """

    def __init__(self, name: Path, size: int, keep: int | None) -> None:
        """
        Args:
            size: a file of so many bytes is the last but one.
            keep: so many files stay; None for all.
        """
        self.name, self._size, self._keep = name, size, keep
        self._number = 1
        self._recording = os.urandom(8).hex()
        self._header = Event(0, "attach")
        self.removed = 0

    @property
    def first(self) -> Path:
        """The first file."""
        return chain.file_of(self.name, 1)

    def begin(self, header: Event) -> Event:
        """The first row of the first file."""
        self._header = header
        return Link(self._recording, 1, header.time_ns, header.time_ns, {}).first_row(header)

    def turn(self, writer: CsvWriter | RawWriter, since_ns: int) -> None:
        """Go on in a new file where the one so far is large enough.

        Args:
            since_ns: nothing that is still to be written is older.

        Raises:
            OutputExists, OutputFailed: the file so far can still be written.
        """
        if writer.size < self._size:
            return
        number = self._number + 1
        link = Link(
            self._recording, number, since_ns - SLACK_NS, time.monotonic_ns(), Counter(writer.rows)
        )
        path = chain.file_of(self.name, number)
        writer.rotate(path, link.last_row(), link.first_row(self._header))
        self._number = number
        if self._keep is not None and self._number > self._keep:
            self._remove(chain.file_of(self.name, self._number - self._keep))

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputFailed(
                f"cannot remove {path}, which --keep lets go: {error.strerror}",
                "record into a folder whose files may be removed",
            ) from error
        self.removed += 1
