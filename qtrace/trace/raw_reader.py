"""A raw file of `--all` read again. Needs numpy, neither pandas nor pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qtrace.errors import TraceUnreadable
from qtrace.trace.raw import BLOCK, FACTS, FORMAT, MAGIC, RECORDS, VERSION

# Rows and facts are small: a longer block of them is damage.
MAX_FACTS = 1 << 28
MAX_RECORDS = 1 << 32

Records = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Block:
    """One block: ``records`` or ``facts``; and its mark."""

    records: Records | None
    facts: dict[str, Any]
    mark: int


class RawReader:
    """A raw file, block by block, bounded in memory.

    Attributes:
        header: its first line.
        truncated: its last block was cut off; known when ``blocks`` has ended.

    Raises:
        TraceUnreadable: no raw file, or one of another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.truncated = False
        try:
            with self.path.open("rb") as file:
                line = file.readline(1 << 24)
                self._start = file.tell()
            self.size = self.path.stat().st_size
        except OSError as error:
            raise TraceUnreadable(
                f"cannot read {self.path}: {error.strerror or error}",
                "check the name and its permissions",
            ) from error
        self.header = self._header(line)
        self.slot = self._slot()

    def blocks(self, limit: int) -> Iterator[tuple[Block, int]]:
        """Each block, records at most ``limit`` at a time, and the bytes read so far.

        Raises TraceUnreadable where a block does not begin as one.
        """
        with self.path.open("rb") as file:
            file.seek(self._start)
            while head := file.read(BLOCK.size):
                if len(head) < BLOCK.size:
                    self.truncated = True
                    return
                magic, kind, length, mark = BLOCK.unpack(head)
                most = MAX_FACTS if kind == FACTS else MAX_RECORDS
                if magic != MAGIC or kind not in (RECORDS, FACTS) or length > most:
                    raise self._damaged(file.tell() - BLOCK.size)
                if kind == FACTS:
                    data = file.read(length)
                    if len(data) < length:
                        self.truncated = True
                        return
                    yield Block(None, self._facts(data, file.tell() - length), mark), file.tell()
                    continue
                while length:
                    part = min(length, limit * self.slot.itemsize)
                    data = file.read(part)
                    whole = len(data) // self.slot.itemsize
                    yield Block(np.frombuffer(data, self.slot, whole), {}, mark), file.tell()
                    if len(data) < part:
                        self.truncated = True
                        return
                    length -= part

    def _header(self, line: bytes) -> dict[str, Any]:
        try:
            header = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            header = None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise TraceUnreadable(
                f"{self.path} is no raw recording", "give a file that qtrace attach --all left"
            )
        if header.get("version", [0])[0] != VERSION[0]:
            raise TraceUnreadable(
                f"{self.path} is a raw recording of another version",
                "convert it with the qtrace that recorded it",
            )
        return header

    def _slot(self) -> np.dtype[np.void]:
        record = self.header.get("record", {})
        try:
            fields = record["fields"]
            if not {kind for _, kind, _, _ in fields} <= {"<u4", "<u8"}:
                raise ValueError
            return np.dtype(
                {
                    "names": [str(name) for name, *_ in fields],
                    "formats": [
                        (kind, (count,)) if count > 1 else kind for _, kind, _, count in fields
                    ],
                    "offsets": [offset for _, _, offset, _ in fields],
                    "itemsize": record["size"],
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TraceUnreadable(
                f"{self.path}: its header describes no records", "take the original file"
            ) from error

    def _facts(self, data: bytes, offset: int) -> dict[str, Any]:
        try:
            facts = json.loads(data)
        except ValueError as error:
            raise self._damaged(offset) from error
        if not isinstance(facts, dict):
            raise self._damaged(offset)
        return facts

    def _damaged(self, offset: int) -> TraceUnreadable:
        return TraceUnreadable(
            f"{self.path}, byte {offset}: no block of a raw recording begins here",
            "the file was damaged after the recording: take the original",
        )
