"""Which schedule each run belongs to, the naive way, and why the analysis may know better.

Naive: the last schedule of the same bottom half that was noted before the run. Plain loops over
rows, nothing of the analysis; every difference from it needs one of the reasons below, each
a check on the rows themselves that can fail.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pandas as pd

Key = tuple[int, ...]
LIVES = ("schedule", "run", "cancel", "delete")


@dataclass(frozen=True)
class Row:
    """An event of a bottom half. ``enqueue`` is what a schedule's flags say, if it has any."""

    number: int
    time_ns: int
    kind: str
    tid: int
    enqueue: str


@dataclass(frozen=True)
class Difference:
    """A run whose schedule is not the naive one. ``place`` is its own in ``life``, ``places`` are
    those of all rows there, by their numbers."""

    life: list[Row]
    places: dict[int, int]
    place: int
    naive: int | None
    taken: int | None
    wait_ns: int | None
    naive_ran_before: bool


def lives(frame: pd.DataFrame) -> dict[Key, list[Row]]:
    """The events of each bottom half in time order: by its address and callback, a one-shot that
    has no address when it is scheduled by what is called, where and on what."""
    columns = ["row", "time_ns", "event", "tid", "detail", "bh", "callback", "ctx", "opaque"]
    rows = frame.loc[frame["event"].isin(LIVES), columns].astype({"event": str, "detail": str})
    flags = {text: json.loads(text).get("enqueue", "") for text in set(rows["detail"]) if text}
    schedules = rows[rows["event"] == "schedule"]
    nameless = set(schedules.loc[schedules["bh"] == 0, "callback"])
    found: dict[Key, list[Row]] = {}
    for number, time_ns, kind, tid, detail, bh, callback, ctx, opaque in zip(
        *(rows[column].tolist() for column in columns), strict=True
    ):
        key = (callback, ctx, opaque) if callback in nameless else (bh, callback)
        row = Row(number, time_ns, kind, tid, flags.get(detail, ""))
        found.setdefault(key, []).append(row)
    return found


def apart(life: list[Row], losses: pd.DataFrame) -> list[list[Row]]:
    """The parts of a life between the intervals in which events were lost, without these."""
    for since, until in zip(losses["since_ns"], losses["until_ns"], strict=True):
        if life and since <= life[-1].time_ns and until >= life[0].time_ns:
            before = [row for row in life if row.time_ns < since]
            after = [row for row in life if row.time_ns > until]
            return [part for half in (before, after) for part in apart(half, losses)]
    return [life]


def differences(
    frame: pd.DataFrame, instances: pd.DataFrame, losses: pd.DataFrame
) -> tuple[int, list[Difference]]:
    """How many runs have the naive schedule and wait, and the others; of those with nothing lost
    between their schedule and them."""
    ran = instances[instances["end"] == "run"]
    taken = dict(zip(ran["ended_row"], ran["scheduled_row"], strict=True))
    waits = dict(zip(ran["ended_row"], ran["wait_ns"], strict=True))
    equal, found = 0, []
    for life in (part for one in lives(frame).values() for part in apart(one, losses)):
        last: Row | None = None
        # Of runs so far.
        used: set[int] = set()
        places = {row.number: place for place, row in enumerate(life)}
        for place, row in enumerate(life):
            if row.kind == "schedule":
                last = row
            if row.kind != "run":
                continue
            own = None if pd.isna(taken[row.number]) else int(taken[row.number])
            wait = None if pd.isna(waits[row.number]) else int(waits[row.number])
            naive = last.number if last else None
            if len(losses) and (naive is None or own not in places):
                continue
            if own == naive and wait == (row.time_ns - last.time_ns if last else None):
                equal += 1
            else:
                spent = naive is not None and naive in used
                found.append(Difference(life, places, place, naive, own, wait, spent))
            if own is not None:
                used.add(own)
    return equal, found


def reason(one: Difference) -> str:
    """Why the analysis has another schedule than the naive one; empty when nothing shows it."""
    for name, shows in REASONS.items():
        if shows(one):
            return name
    return ""


def reasons(found: list[Difference]) -> Counter[str]:
    return Counter(reason(one) for one in found)


def _row(one: Difference, number: int | None) -> tuple[int, Row] | None:
    if number is None:
        return None
    place = one.places[number]
    return place, one.life[place]


def coalesced(one: Difference) -> bool:
    """It was pending since the schedule taken; all later ones found it so and inserted nothing."""
    first = _row(one, one.taken)
    if first is None or first[0] > one.place:
        return False
    between = one.life[first[0] + 1 : one.place]
    swallowed = all(row.kind == "schedule" and row.enqueue == "coalesced" for row in between)
    return bool(between) and swallowed and first[1].enqueue in ("inserted", "requeued") and _exact(
        one, first[1]
    )  # fmt: skip


def equal_one_shots(one: Difference) -> bool:
    """Several one-shots with the same callback, context and argument were pending: the naive
    one's run came before this one."""
    first = _row(one, one.taken)
    return (
        first is not None and first[0] < one.place and not first[1].enqueue
        and one.naive_ran_before and _exact(one, first[1])
    )  # fmt: skip


def noted_after_its_run(one: Difference) -> bool:
    """Nothing was pending when it ran, by what was noted: another thread's schedule, noted next,
    had been made before it. The wait is 0, as nothing tells how long it really was."""
    late = _row(one, one.taken)
    if late is None or late[0] < one.place or one.wait_ns != 0:
        return False
    run = one.life[one.place]
    return (
        late[1].enqueue in ("inserted", "requeued") and late[1].tid != run.tid
        and not _due(one.life, one.place)
    )  # fmt: skip


def noted_before_its_time(one: Difference) -> bool:
    """The naive schedule says that it was inserted while the schedule taken was pending, which
    cannot be: it was made after this run, whose note came late, and belongs to a later one."""
    first, naive = _row(one, one.taken), _row(one, one.naive)
    if first is None or naive is None or not first[0] < naive[0] < one.place:
        return False
    run = one.life[one.place]
    illegal = any(
        one.life[n].enqueue in ("inserted", "requeued") and _due(one.life, n)
        for n in range(first[0] + 1, one.place)
    )
    others = {row.tid for row in one.life[first[0] + 1 : one.place]} - {run.tid}
    return illegal and bool(others) and _exact(one, first[1])


def _due(life: list[Row], place: int) -> bool:
    """Whether it was pending and still to run just before, by what was noted."""
    return place > 0 and life[place - 1].kind == "schedule"


def _exact(one: Difference, first: Row) -> bool:
    return one.wait_ns == one.life[one.place].time_ns - first.time_ns


REASONS: dict[str, Any] = {
    "coalesced": coalesced,
    "noted after its run": noted_after_its_run,
    "noted before its time": noted_before_its_time,
    "equal one-shots": equal_one_shots,
}
