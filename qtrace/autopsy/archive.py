"""The file of an autopsy: a tar archive, compressed by zstd, that only its owner may read.

``tar --zstd -tvf FILE`` lists it. The first member says what it is; the last one says that nothing
is missing: a file that is cut off is read up to there.
"""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from qtrace.errors import AutopsyUnreadable, OutputExists, OutputFailed

FORMAT, VERSION = "qtrace-autopsy", 1
FIRST, LAST = "autopsy.json", "end.json"
# Bytes before compression: nothing larger is written, and nothing larger is read (a file may
# claim anything).
MOST = 64 << 20
OWNER_ONLY = 0o600
READABLE = "name a file that qtrace autopsy has written"


class Writer:
    """A new archive; it is on disk, as far as it goes, after each member.

    Raises:
        OutputExists: the file is there already, and no ``force``.
        OutputFailed: it cannot be written (any more).
    """

    def __init__(self, path: Path, force: bool, about: dict[str, Any]) -> None:
        """``about``: what the first member says beside format and version."""
        self.path = path
        self.left = MOST
        if path.exists() and not force:
            raise OutputExists(path)
        # An earlier one stays until this one is whole.
        self._growing = path.with_name(f".{path.name}.{os.getpid()}.part") if force else path
        try:
            fd = os.open(self._growing, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY)
        except FileExistsError as error:
            raise OutputExists(self._growing) from error
        except OSError as error:
            raise _failed(path, error) from error
        # The stream closes the file as soon as it is whole.
        self._synced = os.dup(fd)
        self._file = os.fdopen(fd, "wb", buffering=0)
        self._stream = pa.CompressedOutputStream(pa.PythonFile(self._file, "w"), "zstd")
        # TarFile asks where it is, and only ever goes on.
        self._tar = tarfile.TarFile(mode="w", fileobj=_Onward(self._stream))  # type: ignore[arg-type]
        self.add_json(FIRST, {"format": FORMAT, "version": VERSION, **about})

    def add(self, name: str, data: bytes) -> bool:
        """Write a member; False when it would make the file too large. Raises OutputFailed."""
        if len(data) > self.left:
            return False
        self.left -= len(data)
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = len(data), OWNER_ONLY, int(time.time())
        try:
            self._tar.addfile(member, io.BytesIO(data))
            self._stream.flush()
        except OSError as error:
            raise _failed(self.path, error) from error
        return True

    def add_json(self, name: str, value: Any) -> bool:
        return self.add(name, json.dumps(value, indent=1).encode())

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the last member, and give the file its name. Raises OutputFailed."""
        self.add_json(LAST, summary)
        try:
            self._tar.close()
            self._stream.close()
            os.fsync(self._synced)
            os.close(self._synced)
            if self._growing != self.path:
                os.replace(self._growing, self.path)
        except OSError as error:
            raise _failed(self.path, error) from error

    def abandon(self) -> None:
        """It cannot be finished: what is on disk stays, for what it is worth."""
        with suppress(Exception):
            self._file.close()


def write_core(path: Path, data: bytes, force: bool) -> None:
    """The core of an autopsy as a file of its own. Raises OutputExists, OutputFailed."""
    replaced = os.O_TRUNC if force else os.O_EXCL
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | replaced, OWNER_ONLY)
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, OWNER_ONLY)
            file.write(data)
    except FileExistsError as error:
        raise OutputExists(path) from error
    except OSError as error:
        raise _failed(path, error) from error


class _Onward:
    """A stream as tarfile writes one: it asks where it is, and never goes back."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._at = 0

    def write(self, data: bytes) -> int:
        self._stream.write(data)
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at


def _failed(path: Path, error: OSError) -> OutputFailed:
    remedy = "name a file in a folder that can be written"
    if error.errno == errno.ENOSPC:
        remedy = "make room there, or name a file on another disk"
    return OutputFailed(f"cannot write {path}: {error.strerror or error}", remedy)


class Autopsy:
    """An archive that was read.

    Attributes:
        about: the first member.
        members: the others, by name.
        end: the last member; None in a file that was cut off.
    """

    def __init__(self, path: Path) -> None:
        """Raises AutopsyUnreadable."""
        self.path = path
        self.members: dict[str, bytes] = {}
        for name, data in _members(path):
            self.members[name] = data
        first = self.members.pop(FIRST, None)
        if first is None:
            raise AutopsyUnreadable(f"{path} is no autopsy", READABLE)
        self.about = _json(path, FIRST, first)
        if self.about.get("format") != FORMAT:
            raise AutopsyUnreadable(f"{path} is no autopsy", READABLE)
        if self.about.get("version") != VERSION:
            version = self.about.get("version")
            raise AutopsyUnreadable(
                f"{path} has version {version!r} of the format, this qtrace reads {VERSION}",
                "read it with the qtrace that wrote it",
            )
        last = self.members.pop(LAST, None)
        self.end = None if last is None else _json(path, LAST, last)

    def json(self, name: str) -> Any:
        """A member's value; None where it is not there. Raises AutopsyUnreadable."""
        data = self.members.get(name)
        return None if data is None else _json(self.path, name, data)


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Up to where it is cut off. Raises AutopsyUnreadable when there is nothing."""
    left, count = MOST, 0
    if path.exists() and not path.is_file():
        raise AutopsyUnreadable(f"{path} is no file", READABLE)
    try:
        with (
            pa.OSFile(str(path)) as file,
            pa.CompressedInputStream(file, "zstd") as stream,
            tarfile.open(mode="r|", fileobj=stream) as tar,
        ):
            for member in tar:
                if not member.isfile() or member.size > left:
                    raise AutopsyUnreadable(f"{path} is no autopsy, or a damaged one", READABLE)
                left -= member.size
                file_of_it = tar.extractfile(member)
                data = file_of_it.read() if file_of_it else b""
                if len(data) < member.size:
                    return
                count += 1
                yield member.name, data
    except FileNotFoundError as error:
        raise AutopsyUnreadable(f"there is no {path}", READABLE) from error
    except (OSError, EOFError, tarfile.TarError, pa.ArrowException) as error:
        if not count:
            raise AutopsyUnreadable(f"{path} is no autopsy: {_short(error)}", READABLE) from error


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0][:100] if str(error) else type(error).__name__


def _json(path: Path, name: str, data: bytes) -> Any:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise AutopsyUnreadable(f"{path} is damaged in {name}", READABLE) from error
    if not isinstance(value, dict):
        raise AutopsyUnreadable(f"{path} is damaged in {name}", READABLE)
    return value
