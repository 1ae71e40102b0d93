"""A recording in several files, read as one (`--rotate`): their names, and what each says.

``trace.csv`` becomes ``trace.chain-00001.csv``, ``trace.chain-00002.csv`` and so on. The name that
was asked for, any of the files, and ``trace.chain-*.csv`` name all of them: what only one of them
holds is no recording. Nothing here needs pandas or pyarrow; a recorder imports it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtrace.event_kinds import COUNTED
from qtrace.trace.schema import Event

KIND = r"(?P<kind>\.(?:csv|parquet)(?:\.raw|\.partial\.csv)?)"
ONE = re.compile(rf"(?P<stem>.+)\.chain-(?P<number>\d{{5,}}|\*){KIND}")
WHOLE = re.compile(rf"(?P<stem>.+?){KIND}")
# In the detail of a file's first and last rows.
KEY = "chain"
# Of a file itself; they are none of the recording's.
OWN_ROWS = ("attach", "rotate")
# Rows of `--all`, which have many names.
ALL = "all"


def file_of(path: Path, number: int | str) -> Path:
    """A file of the chain that is called ``path``; the name of all of them for ``*``."""
    match = ONE.fullmatch(path.name) or WHOLE.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is no name of a trace")
    shown = number if isinstance(number, str) else f"{number:05}"
    return path.with_name(f"{match['stem']}.chain-{shown}{match['kind']}")


def number_of(name: str) -> int:
    """The number in the name of a file of a chain."""
    match = ONE.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is no file of a chain")
    return int(match["number"])


def of_chain(name: str) -> str:
    """How the chain is called whose file has this name; itself where it is none's."""
    match = ONE.fullmatch(name)
    return name if match is None else f"{match['stem']}.chain-*{match['kind']}"


def files_of(path: Path) -> list[Path]:
    """The files that are there of the chain that is called ``path``, in their order."""
    match = WHOLE.fullmatch(path.name)
    if match is None or not path.parent.is_dir():
        return []
    begin = f"{match['stem']}.chain-"
    found = [one for one in path.parent.iterdir() if one.name.startswith(begin)]
    own = (one for one in found if _name(one) == path and one.is_file())
    return sorted(own, key=lambda one: number_of(one.name))


def shown(path: Path) -> Path:
    """How the chain is called to which a path belongs: ``trace.chain-*.csv``; the path itself where
    it is a recording of its own."""
    name = _name(path)
    if name is None and not path.exists() and files_of(path):
        name = path
    return path if name is None else file_of(name, "*")


def is_chain(path: Path) -> bool:
    """Whether it is how a chain is ``shown``."""
    match = ONE.fullmatch(path.name)
    return match is not None and match["number"] == "*"


def links(path: Path) -> list[Path]:
    """All files of the chain that a path names; empty where it names none."""
    name = _name(shown(path))
    return [] if name is None else files_of(name)


def _name(path: Path) -> Path | None:
    """What was asked for, of a file of a chain."""
    match = ONE.fullmatch(path.name)
    return None if match is None else path.with_name(f"{match['stem']}{match['kind']}")


@dataclass(frozen=True)
class Link:
    """What a file of a chain says of itself, and its last row of the next one.

    Attributes:
        recording: another one in each recording.
        number: its place, from 1.
        since_ns: no row in it, or in a later one, is older.
        at_ns: when it was begun: what earlier ones hold had happened by then.
        rows: how many all earlier ones hold, by ``label``.
    """

    recording: str
    number: int
    since_ns: int
    at_ns: int
    rows: Mapping[str, int]

    def facts(self) -> dict[str, Any]:
        return {
            "recording": self.recording, "file": self.number, "since_ns": self.since_ns,
            "at_ns": self.at_ns, "rows": dict(self.rows),
        }  # fmt: skip

    @classmethod
    def of(cls, detail: Mapping[str, Any]) -> Link | None:
        """From a row's detail; None where it says nothing, or something else."""
        facts = detail.get(KEY)
        if not isinstance(facts, dict):
            return None
        rows, known = facts.get("rows"), ("file", "since_ns", "at_ns")
        if not isinstance(rows, dict):
            return None
        if any(type(one) is not int for one in (*map(facts.get, known), *rows.values())):
            return None
        number, since_ns, at_ns = (int(facts[key]) for key in known)
        return cls(str(facts.get("recording")), number, since_ns, at_ns, rows)

    def first_row(self, header: Event) -> Event:
        """The recording's header, as the first row of this file."""
        detail = {**header.detail, KEY: self.facts()}
        return Event(header.time_ns, "attach", detail=detail)

    def last_row(self) -> Event:
        """The last row of the file before this one."""
        return Event(self.at_ns, "rotate", detail={KEY: self.facts()})


def label(event: str, name: str) -> str:
    """What a row is counted under: with its name where it is a hit of a watched probe."""
    return f"{event} {name}" if event in COUNTED else event


def tally(rows: Counter[str], event: Event) -> None:
    """Count a row."""
    if event.event not in OWN_ROWS:
        rows[label(event.event, event.name)] += 1
