"""What only some probes noted, while the others were being taken off, is no part of a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qtrace.analysis import open_traces
from qtrace.trace.schema import Event
from tests.naive import Difference, Row, reason
from tests.unit.event_rows import NAME, attach, detach, run, schedule, write

ALL: dict[str, Any] = {"all": [{"kind": "run"}]}
OTHER = {"name": "dummy_bh_cb", "callback": 0x77, "opaque": 0}


def note(time_ns: int, kind: str, bh: int = 5, **detail: Any) -> Event:
    """As `--all` records an unwatched one."""
    one = (schedule if kind == "schedule" else run)(time_ns, **OTHER)
    enqueue = {"enqueue": "inserted"} if kind == "schedule" else {}
    columns = {c: getattr(one, c) for c in Event.__dataclass_fields__}
    return Event(**columns | {"event": kind, "bh": bh, "detail": enqueue | detail})


# One cancel that nobody saw, at 10; busy until the schedules vanish at 50; runs go on until 90.
BUSY = [note(10, "schedule"), *(note(t, k, bh=6) for t, k in ((20, "schedule"), (30, "run"),
        (40, "schedule"), (50, "run"), (70, "run"))), note(80, "run")]  # fmt: skip


def waits(folder: Path, *events: Event, ended: Event, **header: Any) -> list[int]:
    path = write(folder / "t.csv", [attach(**header), *events, ended])
    instances = open_traces(path)[0].instances
    return sorted(instances.loc[instances["end"] == "run", "wait_ns"].dropna())


def test_no_wait_comes_from_probes_that_went_off_one_after_the_other(tmp_path: Path) -> None:
    assert waits(tmp_path, *BUSY, ended=detach(100, until_ns=60), **ALL) == [10, 10]


def test_an_older_recording_ends_where_schedules_are_missing(tmp_path: Path) -> None:
    assert waits(tmp_path, *BUSY, ended=detach(100), **ALL) == [10, 10]


def test_with_every_schedule_there_an_older_recording_is_whole(tmp_path: Path) -> None:
    whole = [note(10, "schedule"), note(90, "run"), note(91, "return")]
    assert waits(tmp_path, *whole, ended=detach(100), **ALL) == [80]


def test_a_target_that_ended_first_took_all_its_probes_with_it(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [attach(**ALL), *BUSY, Event(95, "exit"), detach(100)])
    assert (open_traces(path)[0].events["event"] == "run").sum() == 4


def test_when_the_probes_of_all_are_dropped_the_watched_go_on(tmp_path: Path) -> None:
    watched = [schedule(55), run(75)]
    ended = detach(100, until_ns=90, all={"dropped_ns": 60, "dropped": "cost 9 %"})
    path = write(tmp_path / "t.csv", [attach(**ALL), *BUSY, *watched, ended])
    instances = open_traces(path)[0].instances
    assert dict(zip(instances["name"], instances["wait_ns"], strict=False))[NAME] == 20
    assert instances["ended_ns"].max() == 75
    (pending,) = instances.index[instances["end"] == ""]
    assert instances["verdict"][pending] == "inconclusive"


def test_what_a_look_saw_at_the_very_end_stays(tmp_path: Path) -> None:
    seen = Event(70, "schedule", name=NAME, detail={"pending_already": True, "bh": "0x9"})
    path = write(
        tmp_path / "t.csv", [attach(), schedule(50), run(65), seen, detach(100, until_ns=60)]
    )
    assert list(open_traces(path)[0].events["time_ns"]) == [1, 50, 70, 100]


@pytest.mark.parametrize(
    ("events", "taken", "expected"),
    [
        # A worker's note came after the run, which nothing pending explains.
        ("M:inserted M:cancel M:RUN a:requeued", 3, "noted after its run"),
        ("M:inserted a:coalesced M:RUN", 0, "coalesced"),
        ("a:inserted b:inserted M:RUN M:run", 0, "noted before its time"),
        # None of these is shown by the rows.
        ("M:inserted M:run M:inserted M:RUN", 0, ""),
        ("M:inserted M:inserted M:RUN", 0, ""),
        ("a:inserted M:RUN a:inserted", 2, ""),
        ("M:inserted M:cancel M:RUN", None, ""),
        ("M:inserted M:cancel M:RUN M:inserted", 3, ""),
    ],
)
def test_a_difference_from_the_naive_pairing_needs_a_reason_in_the_rows(
    events: str, taken: int | None, expected: str
) -> None:
    life = []
    for number, text in enumerate(events.split()):
        thread, what = text.split(":")
        kind = what.lower() if what in ("run", "RUN", "cancel") else "schedule"
        life.append(Row(number, 10 * number, kind, ord(thread), what if kind == "schedule" else ""))
    place = next(n for n, text in enumerate(events.split()) if text.endswith("RUN"))
    naive = max(row.number for row in life[:place] if row.kind == "schedule")
    wait = None if taken is None else max(10 * (place - taken), 0)
    places = {row.number: row.number for row in life}
    assert reason(Difference(life, places, place, naive, taken, wait, False)) == expected
