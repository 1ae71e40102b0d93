"""One trace, several, a folder of them or a pattern."""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterable
from pathlib import Path

from qtrace.errors import TraceUnreadable
from qtrace.trace.reader import Trace, read_trace

SUFFIXES = (".csv", ".parquet")


def load(
    source: str | Path | Trace | Iterable[str | Path | Trace],
    only: Collection[str] | None = None,
) -> list[Trace]:
    """Read every trace that ``source`` names: a file, a folder, a glob, or a list of these.

    Traces that are read already pass through. With ``only``, rows of other bottom halves than
    these are left out.

    Raises:
        TraceUnreadable: one of them is broken, or a folder or glob holds none.
    """
    return [item if isinstance(item, Trace) else read_trace(item, only) for item in files(source)]


def files(source: str | Path | Trace | Iterable[str | Path | Trace]) -> list[Path | Trace]:
    """What ``source`` names, unread.

    Raises:
        TraceUnreadable: a folder or a glob holds no trace.
    """
    if isinstance(source, Trace):
        return [source]
    if isinstance(source, (str, Path)):
        return list(_files(Path(source)))
    return [found for item in source for found in files(item)]


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
