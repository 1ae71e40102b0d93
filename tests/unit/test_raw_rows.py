"""From records to rows: pairs of run and return, depths, and what must never be made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtrace.errors import OutputFailed, TraceUnreadable
from qtrace.record.all_events.all_program import slot_type
from qtrace.trace.convert import convert
from qtrace.trace.raw import RawWriter
from qtrace.trace.raw_rows import RawFacts, RawRowMaker
from qtrace.trace.reader import read_trace
from qtrace.trace.schema import Event

SITES = [
    {"ip": 1, "kind": "enqueue", "new_flags": 3},
    {"ip": 2, "kind": "run", "new_flags": 0},
    {"ip": 3, "kind": "return", "new_flags": 0},
    {"ip": 4, "kind": "enqueue", "new_flags": 0},
]
HEADER = {"sites": SITES, "return_to": "aio_bh_poll+0xc6", "watched_callbacks": [0x99]}


def records(*rows: dict[str, Any]) -> Any:
    made = np.zeros(len(rows), slot_type())
    for index, row in enumerate(rows):
        made[index]["time_ns"] = index
        made[index]["tid"] = row.pop("tid", 7)
        for field, value in row.items():
            made[index][field] = value
    return made


def rows_of(maker: RawRowMaker, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = maker.table(records(*rows)).to_pylist()
    return found


def maker() -> RawRowMaker:
    facts = RawFacts(HEADER)
    facts.learn({"names": {"50": "a_bh"}, "threads": {"7": ["qemu", "main"]},
                 "contexts": {"10": "main"}, "symbols": {"60": "aio_poll+0x124"}})  # fmt: skip
    return RawRowMaker(facts, slot_type())


def run(stack: int, bh: int = 0x30, **more: Any) -> dict[str, Any]:
    return {"ip": 2, "bh": bh, "ctx": 0x10, "name": 0x50, "callback": 0x40, "stack": stack} | more


def ended(stack: int, bh: int = 0x30, **more: Any) -> dict[str, Any]:
    return {"ip": 3, "bh": bh, "stack": stack} | more


def test_a_sampled_event_has_its_whole_stack_and_its_neighbours_have_not() -> None:
    facts = RawFacts(HEADER)
    facts.learn({"names": {"50": "a_bh"}, "symbols": {"60": "aio_poll+0x124"}})
    # Records have their number as time: the second of thread 7, the third of thread 8.
    facts.learn({"stacks": {"start;aio_poll+0x124;aio_bh_poll+0xc6": [[1, 7]]}})
    facts.learn({"stacks": {"start;timer_cb;notify": [[2, 8], [0, 9]]}})
    own = RawRowMaker(facts, slot_type())
    callers = (0x60, 0)
    rows = rows_of(own, run(100, caller=callers), run(90, caller=callers),
                   {"ip": 1, "bh": 0x30, "name": 0x50, "tid": 8})  # fmt: skip
    assert [row["stack"] for row in rows] == [
        "[partial];aio_poll+0x124;aio_bh_poll+0xc6;a_bh",
        "start;aio_poll+0x124;aio_bh_poll+0xc6;a_bh",
        "start;timer_cb;notify",
    ]


def test_records_of_a_kind_that_only_a_newer_qtrace_knows_are_counted_and_left_out() -> None:
    newer = {"ip": 9, "kind": "poll", "new_flags": 0}
    own = RawRowMaker(RawFacts(HEADER | {"sites": [newer, *SITES]}), slot_type())
    rows = rows_of(own, run(100), {"ip": 9, "bh": 0x30}, ended(100))
    assert [row["event"] for row in rows] == ["run", "return"]
    assert own.unknown == 1


def test_a_return_is_about_what_its_run_was_about() -> None:
    first, second = rows_of(maker(), run(100), ended(100))
    assert (first["event"], second["event"]) == ("run", "return")
    for column in ("name", "context", "ctx", "bh", "callback"):
        assert second[column] == first[column]
    assert (first["name"], first["context"], first["thread"]) == ("a_bh", "main", "qemu")


def test_a_return_may_come_a_chunk_later() -> None:
    rows = maker()
    rows_of(rows, run(100))
    assert rows_of(rows, ended(100))[0]["name"] == "a_bh"


@pytest.mark.parametrize("other", [{"stack": 90}, {"bh": 0x31}, {"tid": 8}])
def test_another_place_or_bottom_half_is_no_pair(other: dict[str, int]) -> None:
    _run, alone = rows_of(maker(), run(100), ended(100) | other)
    assert (alone["name"], alone["callback"]) == ("", 0)


def test_depth_counts_the_open_runs_further_out() -> None:
    rows = rows_of(maker(), run(100), run(80), run(60), ended(60), ended(80), run(80), ended(80))
    depths = [row["detail"] for row in rows if row["event"] == "run"]
    assert depths == ['{"depth":0}', '{"depth":1}', '{"depth":2}', '{"depth":1}']


def test_a_lost_return_does_not_make_the_depth_creep_up() -> None:
    rows = maker()
    for _ in range(5):
        found = rows_of(rows, run(100), run(80))
        assert [row["detail"] for row in found] == ['{"depth":0}', '{"depth":1}']


@pytest.mark.parametrize(
    ("old", "new", "event", "detail"),
    [
        (0, 3, "schedule", '{"enqueue":"inserted"}'),
        (3, 3, "schedule", '{"enqueue":"coalesced"}'),
        (1, 3, "schedule", '{"enqueue":"requeued"}'),
        (0, 0x13, "schedule", '{"enqueue":"inserted","idle":true}'),
        (0, 5, "delete", ""),
    ],
)
def test_the_flags_say_what_an_enqueue_did(old: int, new: int, event: str, detail: str) -> None:
    (row,) = rows_of(maker(), {"ip": 4, "flags": old | new << 16, "bh": 0x30})
    assert (row["event"], row["detail"]) == (event, detail)


def test_the_partial_stack_names_the_dispatcher() -> None:
    (row,) = rows_of(maker(), run(100, caller=(0x60, 0)))
    assert row["stack"] == "[partial];aio_poll+0x124;aio_bh_poll+0xc6;a_bh"
    (row,) = rows_of(maker(), run(100))
    # aio_bh_call() has other callers (record and replay): nothing is made up.
    assert row["stack"] == "[partial];a_bh"


def test_a_watched_bottom_half_has_its_own_rows() -> None:
    rows = maker()
    found = rows_of(rows, run(100, callback=0x99), ended(100))
    assert [row["event"] for row in found] == ["return"]
    assert found[0]["callback"] == 0x99
    assert rows.merged == 1


def test_a_record_of_no_known_site_is_counted_not_guessed() -> None:
    rows = maker()
    assert rows_of(rows, {"ip": 9}) == []
    assert rows.unknown == 1


def raw_file(path: Path) -> Path:
    writer = RawWriter(path)
    writer.begin(slot_type(), HEADER)
    writer.write([Event(0, "attach", detail={"format": "qtrace", "version": [1, 0]})])
    writer.append_records(records(run(100), ended(100)))
    writer.append_facts({}, mark=50)
    writer.write([Event(60, "detach")])
    writer.close()
    return path


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda data: b"time_ns,event\r\n", "is missing"),
        (lambda data: data.replace(b"QTRB", b"QTRX", 1), "byte "),
        (lambda data: data.replace(b'"qtrace-raw"', b'"qtrace-egg"', 1), "no trace"),
        (lambda data: data.replace(b'"version":[1,0]', b'"version":[2,0]', 1), "another version"),
        (lambda data: data.replace(b'"<u8"', b'"|O8"', 1), "describes no records"),
        (lambda data: data.replace(b'"stack"', b'"stuck"', 1), "other records"),
        (lambda data: b"", "empty"),
    ],
)
def test_a_damaged_raw_file_is_refused_by_name_and_place(
    damage: Any, what: str, tmp_path: Path
) -> None:
    raw = raw_file(tmp_path / "raw")
    raw.write_bytes(damage(raw.read_bytes()))
    with pytest.raises(TraceUnreadable, match=what):
        convert(raw, tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


def test_analyze_sends_a_raw_file_to_convert(tmp_path: Path) -> None:
    with pytest.raises(TraceUnreadable) as caught:
        read_trace(raw_file(tmp_path / "raw"))
    assert "qtrace convert" in caught.value.remedy


def test_an_existing_file_survives_a_conversion_that_fails(tmp_path: Path) -> None:
    raw, target = tmp_path / "raw", tmp_path / "t.csv"
    raw.write_bytes(raw_file(raw).read_bytes().replace(b"QTRB", b"QTRX", 1))
    target.write_text("precious")
    with pytest.raises(TraceUnreadable):
        convert(raw, target, force=True)
    assert target.read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw", "t.csv"]


def test_other_kinds_of_files_and_the_file_itself_are_refused(tmp_path: Path) -> None:
    raw = raw_file(tmp_path / "raw")
    with pytest.raises(OutputFailed, match="neither"):
        convert(raw, tmp_path / "t.txt")
    csv = tmp_path / "t.csv"
    convert(raw, csv)
    with pytest.raises(OutputFailed, match="itself"):
        convert(csv, csv, force=True)


def test_a_broken_csv_names_row_and_column(tmp_path: Path) -> None:
    csv = tmp_path / "t.csv"
    convert(raw_file(tmp_path / "raw"), csv)
    lines = csv.read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace("0x10", "0xzz", 1)
    csv.write_text("".join(lines))
    with pytest.raises(TraceUnreadable, match="row 3: column 'ctx'"):
        convert(csv, tmp_path / "t.parquet")
