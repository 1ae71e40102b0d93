"""What a recording shows of each bottom half that somebody asks about: verdicts and findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.frames import Frames, Part
from qtrace.analysis.report_types import VerdictFinding
from qtrace.analysis.stacks import frames_of, functions, judge_wait
from qtrace.analysis.verdicts import FINDINGS, SEVERITY


@dataclass
class Half:
    """One of them, in one recording.

    Attributes:
        verdicts, reasons: how many instances have each; why some are inconclusive.
        scheduled, runs: how many were, and how often it ran; unseen: without its schedule.
        findings: by the time and the number of the instance.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    scheduled: int = 0
    runs: int = 0
    unseen: int = 0
    findings: list[tuple[tuple[int, int], VerdictFinding]] = field(default_factory=list)
    _numbers: list[npt.NDArray[np.int64]] = field(default_factory=list)
    _codes: list[npt.NDArray[np.int8]] = field(default_factory=list)

    def add(self, own: pd.DataFrame, number: npt.NDArray[np.int64]) -> None:
        """Some of its instances, and their numbers in the recording."""
        _count(self.verdicts, own["verdict"])
        _count(self.reasons, own.loc[(own["reason"] != "").to_numpy(), "reason"])
        begun, ran = own["scheduled_ns"].notna().to_numpy(), (own["end"] == "run").to_numpy()
        self.scheduled += int(begun.sum())
        self.runs += int(ran.sum())
        self.unseen += int((ran & ~begun).sum())
        self._numbers.append(number)
        self._codes.append(own["verdict"].array.codes)

    def had(self, verdict: str) -> npt.NDArray[np.bool_]:
        """Which of its instances had a verdict, in their order."""
        if not self._codes:
            return np.zeros(0, np.bool_)
        order = np.argsort(np.concatenate(self._numbers), kind="stable")
        found: npt.NDArray[np.bool_] = np.concatenate(self._codes)[order] == SEVERITY.index(verdict)
        return found


class Halves:
    """The bottom halves of some names on the way through one recording."""

    def __init__(self, trace: Frames, names: Collection[str], strict: bool) -> None:
        """``strict``: a ``nested-poll`` for a device's access is a finding too."""
        self._trace, self._strict = trace, strict
        self.found = {name: Half() for name in names}

    def add(self, part: Part) -> None:
        """What is the part's own."""
        instances = part.instances
        asked = instances["name"].cat.categories.isin(list(self.found))
        mask = np.append(asked, False)[instances["name"].array.codes] & part.own
        own = instances[mask].assign(number=part.number[mask])
        for name, some in own.groupby("name", observed=True, sort=False):
            half = self.found[str(name)]
            half.add(some, some["number"].to_numpy(np.int64))
            half.findings += self._findings(some, part)

    def _findings(
        self, own: pd.DataFrame, part: Part
    ) -> list[tuple[tuple[int, int], VerdictFinding]]:
        found = own["verdict"].isin(FINDINGS).to_numpy()
        if self._strict:
            nested = (own["verdict"] == "nested-poll").to_numpy()
            found = found | (nested & own["device_frame"].notna().to_numpy())
        rows = own[found]
        rows = rows.astype(object).where(rows.notna(), None).assign(instance=rows.index)
        # What has no end comes last.
        never = np.iinfo(np.int64).max
        return [
            (
                (never if one["ended_ns"] is None else int(one["ended_ns"]), int(one["number"])),
                _finding(one, part, self._trace),
            )
            for one in rows.to_dict("records")
        ]


def _count(counts: Counter[str], values: pd.Series) -> None:
    for value, count in values.astype(object).value_counts().items():
        counts[str(value)] += int(count)


def _finding(row: dict[Any, Any], part: Part, trace: Frames) -> VerdictFinding:
    numbers = [number for number in (row["scheduled_row"], row["ended_row"]) if number is not None]
    proof = part.proofs.get(row["instance"])
    if proof is not None:
        numbers += proof.rows
        row |= {
            "thread": proof.thread,
            "role": proof.role,
            "tid": proof.tid,
            "context": row["context"] or proof.pending_in,
            "ended_ns": proof.time_ns,
            "stack": proof.stack,
        }
    _chain, deciding, device = frames_of(row)
    if proof is not None:
        deciding = judge_wait(proof.stack)
    finding: dict[str, Any] = {
        "verdict": row["verdict"],
        "instance": row["number"],
        "thread": row["thread"],
        "role": row["role"],
        "tid": row["tid"],
        "context": row["context"],
        "time_ns": row["ended_ns"],
        "scheduled_ns": row["scheduled_ns"],
        # 0: it was pending already when it was first seen.
        "scheduled_by_tid": row["scheduled_by_tid"] or None,
        "scheduled_by_thread": row["scheduled_by_thread"],
        "scheduled_by_role": row["scheduled_by_role"],
        "scheduled_stack": functions(row["scheduled_stack"]),
        "stack": functions(row["stack"]),
        "deciding_frame": deciding,
        "device_frame": device if device >= 0 else None,
        **({"polls": proof.polls or None, "sentence": proof.sentence} if proof is not None else {}),
        "evidence": {"trace": str(trace.path), "rows": numbers},
    }
    found: Any = {key: _plain(value) for key, value in finding.items()}
    plain: VerdictFinding = found
    return plain


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
