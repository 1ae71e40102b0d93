"""The proof that a bottom half cannot run: two looks at the thread in its way.

A recorder writes a ``blocked`` row for each pending bottom half whose only possible runner
sleeps elsewhere. Stranded is what such a row at the very end (``end`` in its detail) shows,
when an earlier one shows the same bottom half behind the same wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from qtrace.analysis.looks import APART_NS, looks_of, same_wait
from qtrace.trace.reader import TraceFile


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


def proofs(instances: pd.DataFrame, trace: TraceFile) -> dict[int, Proof]:
    """The proof for each instance of a trace that has one, by its index in ``instances``.

    Of several instances that are alike, the youngest come first, each with a bottom half of
    its own.
    """
    looks = looks_of(trace)
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
            # Neither it nor those whom it waits for have moved.
            same = all(first[key] == last[key] for key in ("bh", "behind"))
            if apart and same and same_wait(first, last):
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
