"""The facts that a trace keeps as JSON: its header, its losses, its end, and those of its rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from qtrace.errors import TraceUnreadable
from qtrace.trace.broken import NOT_A_TRACE, refuse
from qtrace.trace.gaps import Gap, losses_in
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
    gaps: tuple[Gap, ...]


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
    gap = [Gap.of(*one) for one in zip(lost["time_ns"].tolist(), lost["facts"], strict=True)]
    gaps = tuple(one for one in gap if one is not None)
    lost = lost[np.array([one is None for one in gap], np.bool_)]
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
    lost_events = max(total, counted) + sum(
        int(count) for count in (*step_losses["count"], *qmp_losses["count"])
    )
    return FileFacts(
        header=header,
        losses=_with(losses, gaps, "watched", *(["all"] if "all" in header else [])),
        step_losses=_with(step_losses, gaps, "return"),
        qmp_losses=_with(qmp_losses, gaps, "qmp"),
        lost_events=lost_events + sum(one.count for one in gaps),
        exit=exits.iloc[-1] if len(exits) else None,
        detach=ending,
        complete=len(detach) > 0,
        gaps=gaps,
    )


def _with(losses: pd.DataFrame, gaps: Sequence[Gap], *kinds: str) -> pd.DataFrame:
    """With what is missing of a chain."""
    more = [found for kind in kinds if len(found := losses_in(gaps, kind))]
    return pd.concat([losses, *more], ignore_index=True) if more else losses


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
    return detail_columns(details, {key: absent})[key]


def detail_columns(details: pd.Series, absent: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """As ``detail_column``, of several keys that the same rows tell."""
    codes = details.array.codes
    return {key: table[codes] for key, table in _tables(details, absent).items()}


def detail_table(details: pd.Series, key: str, absent: Any) -> npt.NDArray[Any]:
    """As ``detail_column``, for each category that occurs; the last one is of rows without."""
    return _tables(details, {key: absent})[key]


def _tables(details: pd.Series, absent: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    categories = details.cat.categories
    told = np.zeros(len(categories) + 1, np.bool_)
    told[details.array.codes] = True
    told[-1] = False
    if len(categories):
        told[:-1] &= _may_tell(categories, absent)
    codes = np.flatnonzero(told)
    tables: dict[str, npt.NDArray[Any]] = {}
    for key, nothing in absent.items():
        kind = np.int64 if type(nothing) is int else np.bool_ if type(nothing) is bool else object
        tables[key] = np.empty(len(told), kind)
        tables[key].fill(nothing)
    for code, text in zip(codes.tolist(), categories.take(codes).tolist(), strict=True):
        facts = _parsed(text)
        for key, nothing in absent.items():
            value = facts.get(key)
            if type(value) is type(nothing) and (type(value) is not int or _is_int64(value)):
                tables[key][code] = value
    return tables


def _may_tell(categories: pd.Index, keys: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Which texts have one of these keys: a recording of a busy monitor has hundreds of thousands
    of texts, each with a number of its own. One with a backslash may have it in escapes."""
    texts = pa.array(categories.array)
    pattern = "|".join(re.escape(f'"{key}"') for key in keys)
    found: npt.NDArray[np.bool_] = pc.match_substring_regex(texts, rf"{pattern}|\\").to_numpy(
        zero_copy_only=False
    )
    return found


def _parsed(text: str) -> Mapping[str, Any]:
    """What is no JSON object says nothing."""
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
