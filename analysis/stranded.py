"""The proof that a bottom half cannot run: two looks at the thread in its way.

A recorder writes a ``blocked`` row for each pending bottom half whose only possible runner
sleeps elsewhere. Stranded is what such a row at the very end (``end`` in its detail) shows,
when an earlier one shows the same bottom half behind the same wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from qtrace.trace import details
from qtrace.trace.reader import Trace

# Looks closer than this to each other are one.
APART_NS = 100_000_000
TEXTS = ("pending_in", "sentence")


@dataclass(frozen=True)
class Proof:
    """Two looks: the columns of the last one, and the numbers of both rows."""

    bh: int
    time_ns: int
    tid: int
    thread: str
    role: str
    polls: str
    stack: str
    pending_in: str
    sentence: str
    rows: tuple[int, int]


def proofs(instances: pd.DataFrame, trace: Trace) -> dict[int, Proof]:
    """The proof for each instance of a trace that has one, by its index in ``instances``.

    Of several instances that are alike, the youngest come first, each with a bottom half of
    its own.
    """
    looks = _looks(trace)
    if not looks:
        return {}
    found: dict[int, Proof] = {}
    used: set[int] = set()
    waiting = instances[instances["end"] == ""].iloc[::-1]
    columns = ["callback", "opaque", "ctx", "scheduled_ns"]
    for index, values in zip(waiting.index, waiting[columns].to_numpy(object), strict=True):
        callback, opaque, ctx, scheduled = values
        own = [
            look
            for look in looks
            if (look["callback"], look["opaque"]) == (callback, opaque)
            and ctx in (0, look["pending_ctx"])
            and look["bh"] not in used
            and (pd.isna(scheduled) or look["time_ns"] >= scheduled)
        ]
        proof = _prove(own)
        if proof is not None:
            found[int(index)] = proof
            used.add(proof.bh)
    return found


def _prove(looks: list[dict[str, Any]]) -> Proof | None:
    for last in (look for look in looks if look["end"]):
        for first in looks:
            apart = last["time_ns"] - first["time_ns"] >= APART_NS
            if apart and first["bh"] == last["bh"] and _same_wait(first, last):
                return Proof(
                    bh=last["bh"],
                    time_ns=last["time_ns"],
                    tid=last["tid"],
                    thread=last["thread"],
                    role=last["role"],
                    polls=last["context"],
                    stack=last["stack"],
                    pending_in=last["pending_in"],
                    sentence=last["sentence"],
                    rows=(first["row"], last["row"]),
                )
    return None


def _same_wait(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """The same place of the same stack, behind threads that have not moved either; and it
    polls, or has not run at all in between."""
    keys = ("tid", "stack", "waits_at", "context", "behind")
    same = all(one[key] == other[key] for key in keys)
    unmoved = bool(one["cpu_ns"]) and one["cpu_ns"] == other["cpu_ns"]
    return same and bool(one["stack"]) and (unmoved or one["context"] != "")


def _looks(trace: Trace) -> list[dict[str, Any]]:
    """The blocked rows in time order, with what their details say."""
    rows = trace.frame[trace.frame["event"] == "blocked"]
    looks = []
    for values in rows.astype(object).to_numpy():
        look = dict(zip(map(str, rows.columns), values, strict=True))
        facts = details.parse(trace.path, str(look["detail"]), int(look["row"]))
        look |= {key: facts.get(key, "") for key in (*TEXTS, "waits_at", "behind")}
        look["cpu_ns"] = facts.get("cpu_ns", 0)
        look["end"] = facts.get("end") is True
        look["pending_ctx"] = _address(facts.get("pending_ctx"))
        looks.append(look)
    return looks


def _address(text: object) -> int:
    try:
        return int(str(text), 16)
    except ValueError:
        return 0
