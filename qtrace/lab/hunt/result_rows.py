"""Results as rows: written as they come, and counted in a table."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qtrace.lab.hunt.cell import OUTCOMES, Result
from qtrace.trace.schema import escape

COLUMNS = (
    "cell", "qemu", "version", "device", "command", "iothread", "accel", "seed", "end", "outcome",
    "what", "seconds", "turns", "asked", "refused", "slowest", "slowest_s", "guest_rounds",
    "checked", "wrong", "verified", "corrupt", "said", "lints", "kept",
)  # fmt: skip


def as_row(result: Result) -> dict[str, Any]:
    """Plain data, a key for each column. What QEMU wrote is untrusted: it is escaped."""
    cell = result.cell
    return {
        "cell": cell.name,
        "qemu": str(cell.build.path),
        "version": cell.build.version,
        "device": cell.device,
        "command": cell.command,
        "iothread": cell.iothread,
        "accel": cell.accel,
        "seed": cell.seed,
        "end": result.end,
        "outcome": result.outcome,
        "what": escape(result.what),
        "seconds": result.seconds,
        "turns": result.turns,
        "asked": result.asked,
        "refused": {escape(text): count for text, count in result.refused.items()},
        "slowest": result.slowest,
        "slowest_s": result.slowest_s,
        "guest_rounds": result.guest_rounds,
        "checked": result.checked,
        "wrong": result.wrong,
        "verified": result.verified,
        "corrupt": result.corrupt,
        "said": escape(result.said),
        "lints": result.lints,
        "kept": result.kept,
    }


class RowFile:
    """A CSV that has each result as soon as it is there; Parquet is made of it at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._csv = path if path.suffix == ".csv" else path.with_suffix(".partial.csv")

    def __enter__(self) -> Self:
        self._file = self._csv.open("w", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS)
        self._writer.writeheader()
        self._file.flush()
        return self

    def add(self, result: Result) -> None:
        row = as_row(result)
        for name in ("refused", "lints", "kept"):
            row[name] = json.dumps(row[name]) if row[name] else ""
        self._writer.writerow(row)
        self._file.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if self._csv != self._path:
            import pyarrow.csv
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.csv.read_csv(self._csv), self._path)
            self._csv.unlink()


def count(results: Iterable[Result], by: str) -> dict[str, dict[str, int]]:
    """How many of each outcome, by a column: ``{"virtio-blk": {"died": 2, "ok": 10}}``."""
    counted: dict[str, Counter[str]] = {}
    for result in results:
        counted.setdefault(str(as_row(result)[by]), Counter())[result.outcome] += 1
    return {key: ordered(counts) for key, counts in sorted(counted.items())}


def ordered(counts: Mapping[str, int]) -> dict[str, int]:
    """The worst outcome first, without those that did not occur."""
    return {outcome: counts[outcome] for outcome in OUTCOMES if counts.get(outcome)}
