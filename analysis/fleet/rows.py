"""A recording as a row of the table: read, or what is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import qtrace
from qtrace.analysis.fleet.files import URL, File, at_hand, content_of, stamp_of
from qtrace.analysis.summarise import summarise
from qtrace.analysis.summary import Environment, Summary
from qtrace.errors import QtraceError, TraceUnreadable

# What decides a row: the code of these.
ROOMS = ("analysis", "trace", "event_kinds.py", "knowledge.py", "roles.py", "units.py")
# Of a row about which nothing can be said.
UNREAD = "inconclusive"
REPORT = "open an issue with the recording, or its first lines"


@dataclass(frozen=True)
class Row:
    """A recording.

    Attributes:
        url, size, stamp: see ``File``.
        sha256: of its content; empty where it could not be read to the end, which may pass.
        verdict: ``inconclusive`` where there is no summary.
        error, remedy: why there is none, and what to do; else empty.
        duplicate_of: the first recording with the same content, else empty; counted there alone.
        summary: None where it could not be made.
    """

    url: str
    size: int
    stamp: str
    sha256: str = ""
    verdict: str = UNREAD
    error: str = ""
    remedy: str = ""
    duplicate_of: str = ""
    summary: Summary | None = None

    @property
    def environment(self) -> Environment:
        """Where it was made; all empty where that is not known."""
        known = self.summary.environments if self.summary is not None else {}
        return next(iter(known), Environment())


class OtherVersion(RuntimeError):
    """A worker has other code than who asks it."""


@cache
def analysis_version() -> str:
    """The version of qtrace, and a hash of all code that decides what a row says."""
    root = Path(qtrace.__file__).parent
    digest = hashlib.sha256()
    for room in ROOMS:
        place = root / room
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(path.read_bytes())
    return f"{qtrace.__version__}+{digest.hexdigest()[:12]}"


def row_of(file: File, version: str, known: Collection[str] = ()) -> Row:
    """Read a recording. Whatever is wrong with it is in the row.

    Args:
        version: ``analysis_version()`` of who asks.
        known: hashes of contents whose summary is there already: of these only the hash is made.

    Raises:
        OtherVersion: the code here is another one.
    """
    if version != analysis_version():
        raise OtherVersion(f"it has qtrace {analysis_version()}")
    row = Row(file.url, file.size, file.stamp)
    try:
        with at_hand(file) as path:
            return _read(row, path, known)
    except TraceUnreadable as error:
        return replace(row, error=error.message, remedy=error.remedy)
    except QtraceError as error:
        return replace(row, error=error.message, remedy=error.remedy)
    except MemoryError:
        return replace(
            row, error="not enough memory to analyse it", remedy="give the workers more memory"
        )
    # One recording of ten thousand must not end them all: each has its row.
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        return replace(row, error=f"{type(error).__name__}: {text}", remedy="run it again")


def _read(row: Row, path: Path, known: Collection[str]) -> Row:
    digest = hashlib.sha256()
    for one in content_of(path):
        with one.open("rb") as content:
            hashlib.file_digest(content, lambda: digest)
    sha256 = digest.hexdigest()
    if sha256 in known:
        return replace(row, sha256=sha256, verdict="")
    try:
        summary = summarise(path, row.url)
        done = replace(row, sha256=sha256, verdict=summary.verdict, summary=summary)
    except TraceUnreadable as error:
        message = error.message.replace(str(path), row.url)
        done = replace(row, sha256=sha256, error=message, remedy=error.remedy)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        text = f"the analysis failed: {type(error).__name__}: {error}".splitlines()[0]
        done = replace(row, sha256=sha256, error=text, remedy=REPORT)
    if not URL.match(row.url) and stamp_of(path) != (row.size, row.stamp):
        return replace(row, error="it changed while it was read", remedy="run it again")
    return done


def again(old: Row, file: File) -> Row:
    """The row of a content that is known, where it lies now."""
    summary = old.summary
    if summary is not None and old.url != file.url:
        moved = {key: replace(one, trace=file.url) for key, one in summary.findings.items()}
        summary = replace(summary, findings=moved)
    error = old.error.replace(old.url, file.url)
    return replace(
        old, url=file.url, size=file.size, stamp=file.stamp, error=error, summary=summary,
        duplicate_of="",
    )  # fmt: skip
