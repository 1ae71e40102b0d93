"""The facts that a trace keeps as JSON: its header, its losses, its end, and those of its rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.errors import TraceUnreadable
from qtrace.trace.broken import NOT_A_TRACE, refuse
from qtrace.trace.schema import FORMAT, MAJOR


@dataclass(frozen=True)
class FileFacts:
    """See ``TraceFile``, whose fields these become."""

    header: dict[str, Any]
    losses: pd.DataFrame
    step_losses: pd.DataFrame
    qmp_losses: pd.DataFrame
    lost_events: int
    exit: dict[str, Any] | None
    detach: dict[str, Any]
    complete: bool


def file_facts(path: Path, frame: pd.DataFrame) -> FileFacts:
    """Collect them from the few rows that carry them.

    Raises:
        TraceUnreadable: no attach row or several, broken JSON, another version.
    """
    attach = _rows(path, frame, "attach")
    if attach.empty:
        raise TraceUnreadable(f"{path} is no trace: it has no attach row", NOT_A_TRACE)
    if len(attach) > 1:
        raise refuse(
            path,
            "a second attach row: these are two recordings in one file",
            int(attach["row"].iloc[1]),
            "give each recording its own file; `qtrace analyze` takes several",
        )
    header = _header(path, attach["facts"].iloc[0], int(attach["row"].iloc[0]))
    lost = _rows(path, frame, "lost")
    # What no verdict depends on makes none inconclusive.
    kind = np.array([facts.get("probes", "") for facts in lost["facts"]], dtype=object)
    steps, qmp = kind == "steps", kind == "qmp"
    losses, step_losses = _losses(path, lost[~(steps | qmp)]), _losses(path, lost[steps])
    qmp_losses = _losses(path, lost[qmp])
    exits = _rows(path, frame, "exit")["facts"]
    detach = _rows(path, frame, "detach")["facts"]
    ending = detach.iloc[-1] if len(detach) else {}
    counted = int(losses["count"].sum())
    total = ending.get("lost", 0)
    total = total if isinstance(total, int) else 0
    if total > counted:
        # Lost at a time nobody noted: it may have been any time.
        limits = np.iinfo(np.int64)
        losses.loc[len(losses)] = [limits.min, limits.max, total - counted, False]
    return FileFacts(
        header=header,
        losses=losses,
        step_losses=step_losses,
        qmp_losses=qmp_losses,
        lost_events=max(total, counted)
        + int(step_losses["count"].sum())
        + int(qmp_losses["count"].sum()),
        exit=exits.iloc[-1] if len(exits) else None,
        detach=ending,
        complete=len(detach) > 0,
    )


def parse(path: Path, text: str, row: int) -> dict[str, Any]:
    """A row's detail; empty when it has none.

    Raises:
        TraceUnreadable: not a JSON object.
    """
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise refuse(path, f"column 'detail' is no JSON: {error}", row) from error
    if not isinstance(value, dict):
        raise refuse(path, "column 'detail' is no JSON object", row)
    return value


def detail_column(details: pd.Series, key: str, absent: Any) -> npt.NDArray[Any]:
    """What the column ``detail`` says of one key, row by row; each text is parsed once.

    Args:
        absent: stands where a row does not say it, or as something of another type.
    """
    found: npt.NDArray[Any] = detail_table(details, key, absent)[details.array.codes]
    return found


def detail_table(details: pd.Series, key: str, absent: Any) -> npt.NDArray[Any]:
    """As ``detail_column``, for each category that occurs; the last one is of rows without."""
    categories = details.cat.categories
    used = np.zeros(len(categories) + 1, np.bool_)
    used[details.array.codes] = True
    kind = np.int64 if type(absent) is int else np.bool_ if type(absent) is bool else object
    table: npt.NDArray[Any] = np.empty(len(used), kind)
    table.fill(absent)
    for code in np.flatnonzero(used[:-1]).tolist():
        value = _parsed(categories[code]).get(key)
        if type(value) is type(absent) and (type(value) is not int or _is_int64(value)):
            table[code] = value
    return table


@lru_cache(maxsize=1 << 16)
def _parsed(text: str) -> Mapping[str, Any]:
    """Shared by all who ask: not to be changed. What is no JSON object says nothing."""
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def address_of(text: object) -> int:
    """An address as details have it (``"0x7f3a1c0051e0"``); 0 for anything else."""
    try:
        value = int(str(text), 16)
    except ValueError:
        return 0
    return value if 0 <= value < 1 << 64 else 0


def check_version(path: Path, header: dict[str, Any]) -> None:
    """Refuse other formats and other major versions.

    Raises:
        TraceUnreadable
    """
    version = header.get("version")
    if header.get("format") != FORMAT or not isinstance(version, list) or not version:
        raise TraceUnreadable(f"{path} is no trace: its attach row names no format", NOT_A_TRACE)
    if version[0] != MAJOR:
        shown = ".".join(str(part) for part in version[:2])[:20]
        raise TraceUnreadable(
            f"{path} has the trace format {shown}; this qtrace reads {MAJOR}.x",
            "analyze it with the qtrace that recorded it, or a newer one",
        )


def _rows(path: Path, frame: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The rows of one kind, with their parsed ``detail`` as ``facts``."""
    rows = frame.loc[frame["event"] == kind, ["time_ns", "row", "detail"]]
    facts = [parse(path, text, row) for text, row in zip(rows["detail"], rows["row"], strict=True)]
    return rows.assign(facts=pd.Series(facts, index=rows.index, dtype=object))


def _header(path: Path, header: dict[str, Any], row: int) -> dict[str, Any]:
    check_version(path, header)
    target, watched = header.setdefault("target", {}), header.setdefault("watched", [])
    if not isinstance(target, dict):
        raise refuse(path, "column 'detail': 'target' is no object", row)
    named = isinstance(watched, list) and all(
        isinstance(item, dict) and isinstance(item.get("name"), str) for item in watched
    )
    if not named:
        raise refuse(path, "column 'detail': 'watched' is no list of named bottom halves", row)
    return header


def _losses(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    limits = np.iinfo(np.int64)
    since, count, every = [], [], []
    for facts, row in zip(rows["facts"], rows["row"], strict=True):
        # Without a beginning: since ever.
        since.append(facts.get("since_ns", limits.min))
        count.append(facts.get("count", 1))
        every.append(facts.get("probes") == "all")
        if not all(_is_int64(value) for value in (since[-1], count[-1])):
            raise refuse(path, "column 'detail': 'since_ns' or 'count' is no integer", row)
    losses = pd.DataFrame(
        {"since_ns": since, "until_ns": rows["time_ns"].to_numpy(), "count": count}, dtype=np.int64
    )
    return losses.assign(every=np.array(every, dtype=np.bool_))


def _is_int64(value: object) -> bool:
    return type(value) is int and -(1 << 63) <= value < 1 << 63
