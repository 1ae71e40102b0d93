"""Recordings where they lie: on a disk, or in whatever fsspec reaches (``s3://bucket/folder``)."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from qtrace.analysis.traces import SUFFIXES
from qtrace.errors import ExtraMissing, FleetFailed
from qtrace.trace.chain import links, number_of, of_chain

URL = re.compile(r"([a-z][a-z0-9+.-]*)://")
# What fsspec and the libraries below it say when somebody may not: by the names of the classes, of
# which each library has its own.
FORBIDDEN = ("PermissionError", "NoCredentialsError", "PartialCredentialsError", "AccessDenied")
EXTRAS = {"s3": ("s3fs", "s3")}


@dataclass(frozen=True)
class File:
    """A recording, unread.

    Attributes:
        url: an absolute path, or a URL.
        size: in bytes.
        stamp: what is another one when the content is: the time of its last change, or an ETag.
        parts: of a chain the files, in their order; its ``url`` has a ``*`` for their numbers.
    """

    url: str
    size: int
    stamp: str
    parts: tuple[str, ...] = ()


def find(sources: Iterable[str], without: Iterable[str] = ()) -> list[File]:
    """All recordings of files, folders (with those below them), globs and URLs of these, each once,
    in the order of their names.

    Args:
        without: these are none, whatever they are called.

    Raises:
        FleetFailed: one holds no recording, does not exist, or cannot be listed.
        ExtraMissing: a library for such URLs is not installed.
    """
    found: dict[str, File] = {}
    left_out = set(without)
    for source in sources:
        files = _remote(source) if URL.match(source) else _local(Path(source))
        own = {file.url: file for file in _chained(files) if file.url not in left_out}
        if not own:
            remedy = f"name a folder with {' or '.join(SUFFIXES)} files"
            if URL.match(source):
                remedy += ", and check that the address answers"
            raise FleetFailed(f"no recording in {source}", remedy)
        found |= own
    return [found[url] for url in sorted(found)]


@contextlib.contextmanager
def at_hand(file: File) -> Iterator[Path]:
    """The file on a disk of this machine: itself, or a copy that is removed afterwards.

    Raises:
        OSError, or what fsspec raises: it cannot be read.
    """
    if not URL.match(file.url):
        yield Path(file.url)
        return
    with tempfile.TemporaryDirectory(prefix="qtrace-") as folder:
        path = Path(folder, Path(file.url).name)
        for url in file.parts or [file.url]:
            system, inside = _system(url)
            system.get_file(inside, str(path.with_name(Path(url).name)))
        yield path


def content_of(path: Path) -> list[Path]:
    """The local files of a recording: itself, or those of a chain."""
    return links(path) or [path]


def stamp_of(path: Path) -> tuple[int, str]:
    """Size and stamp of a local recording. Raises OSError."""
    found = [one.stat() for one in content_of(path)]
    return sum(one.st_size for one in found), _stamp([str(one.st_mtime_ns) for one in found])


def _stamp(stamps: list[str]) -> str:
    if len(stamps) == 1:
        return stamps[0]
    return hashlib.sha256("\0".join(stamps).encode()).hexdigest()[:16]


def _chained(files: Iterable[File]) -> Iterator[File]:
    """The files of a chain as one recording."""
    chains: dict[str, list[File]] = {}
    for file in files:
        path = PurePosixPath(file.url)
        whole = file.url[: -len(path.name)] + of_chain(path.name)
        chains.setdefault(whole, []).append(file)
    for url, parts in chains.items():
        if url == parts[0].url:
            yield parts[0]
            continue
        parts.sort(key=lambda one: number_of(PurePosixPath(one.url).name))
        urls = tuple(part.url for part in parts)
        stamps = [part.stamp for part in parts]
        stamp = _stamp(stamps) if all(stamps) else ""
        yield File(url, sum(part.size for part in parts), stamp, urls)


def _local(path: Path) -> Iterator[File]:
    if path.is_dir():
        names = [
            Path(folder, name)
            for folder, _folders, names in os.walk(path)
            for name in names
            if name.endswith(SUFFIXES) and not name.startswith(".")
        ]
    elif glob.has_magic(str(path)) and not path.exists():
        names = [Path(name) for name in glob.glob(str(path), recursive=True)]
    else:
        names = content_of(path)
    for name in names:
        try:
            status = name.stat()
        except FileNotFoundError as error:
            if name != path:
                continue  # It went while we looked.
            raise FleetFailed(f"there is no {name}", "check the name") from error
        except OSError as error:
            raise FleetFailed(f"cannot read {name}: {error.strerror}", "check it") from error
        if name.is_file():
            yield File(os.path.abspath(name), status.st_size, str(status.st_mtime_ns))


def _remote(url: str) -> Iterator[File]:
    system, inside = _system(url)
    try:
        if glob.has_magic(inside):
            listed = system.glob(inside, detail=True)
        else:
            listed = system.find(inside, detail=True)
            # Of a file of a web server it says nothing more than that it is there.
            listed = {name: facts or system.info(name) for name, facts in listed.items()}
    # Each library below fsspec has errors of its own, with no base in common.
    except Exception as error:
        raise _unreachable(url, error) from error
    for name, facts in listed.items():
        if facts.get("type") == "file" and (name.endswith(SUFFIXES) or name == inside):
            stamp = next(
                (str(facts[key]) for key in ("ETag", "etag", "LastModified", "mtime", "created")
                 if facts.get(key)), "",
            )  # fmt: skip
            yield File(system.unstrip_protocol(name), int(facts.get("size") or 0), stamp)


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the name there. Raises ExtraMissing, FleetFailed."""
    protocol = URL.match(url)
    kind = protocol[1] if protocol else ""
    try:
        fsspec = importlib.import_module("fsspec")
        system, inside = fsspec.core.url_to_fs(url)
    except ImportError as error:
        if kind not in EXTRAS and getattr(error, "name", "") != "fsspec":
            raise FleetFailed(f"{kind}://: {error}", "install what it names") from error
        library, extra = EXTRAS.get(kind, ("fsspec", "fleet"))
        raise ExtraMissing(extra, f"{kind}:// needs the library {library}: {error}") from error
    except ValueError as error:
        raise FleetFailed(
            f"{url}: {error}", "name a path, s3://BUCKET/FOLDER, or another URL that fsspec knows"
        ) from error
    # What is listed must be what is there now.
    system.invalidate_cache()
    return system, inside


def _unreachable(url: str, error: Exception) -> FleetFailed:
    kind, text = type(error).__name__, (str(error).splitlines() or [""])[0]
    if kind in FORBIDDEN or "forbidden" in text.lower() or "credentials" in text.lower():
        remedy = "check the credentials (for s3: AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret)"
    elif kind == "FileNotFoundError":
        remedy = "check the names of bucket and folder"
    else:
        remedy = "check the address (for s3: AWS_ENDPOINT_URL) and the network"
    return FleetFailed(f"cannot list {url}: {kind}: {text}", remedy)
