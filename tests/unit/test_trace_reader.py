"""Reading: typed frames from good files, one clear error for each kind of broken one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtrace.analysis import judge
from qtrace.errors import ExitStatus, TraceUnreadable
from qtrace.trace.details import address_of, detail_column, detail_columns
from qtrace.trace.reader import read_trace
from qtrace.trace.schema import Event
from tests.unit.event_rows import CALLBACK, PID, attach, detach, lost, run, schedule, write

EVENTS = [attach(), schedule(10), run(20), detach()]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path / "t.csv", EVENTS)


def test_columns_are_typed(good: Path) -> None:
    frame = read_trace(good).frame
    types = frame.dtypes.astype(str)
    assert (types[["time_ns", "tid", "row"]] == "int64").all()
    assert (types[["ctx", "bh", "callback", "opaque"]] == "uint64").all()
    rest = types.drop(["time_ns", "tid", "row", "ctx", "bh", "callback", "opaque"])
    assert (rest == "category").all()
    assert frame.loc[1, "callback"] == np.uint64(CALLBACK)
    assert frame.loc[1, "bh"] == 0
    assert frame.loc[0, "tid"] == 0
    assert list(frame["row"]) == [2, 3, 4, 5]


def test_the_header_and_the_end_are_facts_of_the_trace(tmp_path: Path) -> None:
    exit_row = Event(50, "exit", detail={"signal": 6})
    events = [attach(), lost(5, 8, 3), exit_row, detach(reason="target exited", lost=3)]
    trace = read_trace(write(tmp_path / "t.csv", events))
    assert trace.header["target"]["pid"] == PID
    assert trace.exit == {"signal": 6}
    assert trace.detach["reason"] == "target exited"
    assert trace.lost_events == 3
    loss = {"since_ns": 5, "until_ns": 8, "count": 3, "every": False}
    assert trace.losses.to_dict("records") == [loss]
    assert trace.complete
    assert not trace.warnings


def test_losses_that_only_the_end_knows_may_have_been_at_any_time(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "t.csv", [attach(), lost(5, 8, 3), detach(lost=10)]))
    assert trace.lost_events == 10
    assert list(trace.losses["count"]) == [3, 7]
    assert trace.losses["since_ns"].iloc[1] < 0


def test_rows_are_sorted_by_time_and_equal_times_keep_their_order(tmp_path: Path) -> None:
    events = [attach(), run(30), schedule(10), schedule(20), run(20), detach()]
    frame = read_trace(write(tmp_path / "t.csv", events)).frame
    assert list(frame["row"]) == [2, 4, 5, 6, 3, 7]


def test_without_a_detach_row_it_was_cut_off(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "t.csv", EVENTS[:-1]))
    assert not trace.complete
    assert any("cut off" in warning for warning in trace.warnings)


def test_a_minor_version_may_add_columns_and_kinds(good: Path) -> None:
    lines = good.read_text().splitlines()
    lines[0] += ",colour"
    lines[1:] = [line + ",blue" for line in lines[1:]]
    lines.insert(3, "15,dance,,,,,,,,,,,,")
    good.write_text("\n".join(lines).replace("[1,0]", "[1,7]") + "\n")
    trace = read_trace(good)
    assert list(trace.frame["event"]) == ["attach", "schedule", "run", "detach"]
    assert list(trace.frame["row"]) == [2, 3, 5, 6]
    assert trace.warnings == [
        "unknown columns were skipped: 'colour'",
        "1 rows of the unknown kind 'dance' were skipped, the first is row 4",
    ]


def edit(old: str, new: str) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old.encode() in data
        return data.replace(old.encode(), new.encode(), 1)

    return change


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "is empty"),
    "binary": (lambda data: b"\x7fELF\x00\x01" + data, "is a binary file"),
    "another CSV": (lambda data: b"name,age\nme,3\n", "is no trace: it does not have the columns"),
    "no rows": (lambda data: data.split(b"\n")[0] + b"\n", "it has no attach row"),
    "no attach row": (edit(",attach,", ",exit,"), "it has no attach row"),
    "two recordings": (
        lambda data: data + b"".join(data.splitlines(keepends=True)[1:]),
        "row 6: a second attach row",
    ),
    "another format": (edit('""qtrace""', '""perf""'), "names no format"),
    "another major version": (
        edit("[1,0]", "[2,3]"), "has the trace format 2.3; this qtrace reads 1.x",
    ),
    "broken header": (edit('{""calls""', '""calls""'), "row 2: column 'detail' is no JSON"),
    "header is a list": (
        edit('""watched"":[{""call_sites""', '""watched"":[{""x"":1},{""call_sites""'),
        "row 2: column 'detail': 'watched' is no list",
    ),
    "missing column": (edit(",bh,", ",Bh,"), "row 1: column 'bh' is missing"),
    "column twice": (edit(",bh,", ",ctx,"), "row 1: column 'ctx' is there twice"),
    "bad time": (edit("10,schedule", "1o,schedule"), "row 3: column 'time_ns' is no integer: '1o'"),
    "no time": (edit("10,schedule", ",schedule"), "row 3: column 'time_ns' is empty"),
    "bad tid": (edit("run,100,", "run,x,"), "row 4: column 'tid' is no integer: 'x'"),
    "bad pointer": (edit("0x99", "0xgg"), "row 4: column 'bh' is no integer: '0xgg'"),
    "pointer too large": (edit("0x99", "0x1" + "0" * 16), "row 4: column 'bh' is out of range"),
    "too few fields": (edit("20,run,", "20,"), "row 4: 12 fields where the header has 13"),
    "quote never closed": (edit("10,schedule", '10,"schedule'), "row "),
    "not UTF-8": (
        lambda data: data.replace(b"qemu-system-x86,", b"qemu\xff,", 1), "'thread' is not UTF-8",
    ),
    "raw control characters": (
        edit("qemu-system-x86,", "qemu\x1b[31m,"), "row 3: column 'thread' holds raw control char",
    ),
    "a terminal's 8-bit controls": (
        edit("qemu-system-x86,", "qemu\x9b31m,"), "row 3: column 'thread' holds raw control char",
    ),
    "text that runs backwards": (
        edit("qemu-system-x86,", "qemu\u202e,"), "row 3: column 'thread' holds raw control char",
    ),
    "Parquet that is none": (lambda data: b"PAR1" + data + b"PAR1", "is no readable Parquet file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_each_kind_of_broken_file_has_its_own_error(good: Path, kind: str) -> None:
    change, message = BROKEN[kind]
    good.write_bytes(change(good.read_bytes()))
    with pytest.raises(TraceUnreadable) as caught:
        read_trace(good)
    assert message in caught.value.message
    assert str(good) in caught.value.message
    assert caught.value.remedy
    assert caught.value.exit_status == ExitStatus.ENVIRONMENT


def test_a_missing_file_a_folder_and_a_broken_lost_row_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceUnreadable, match="No such file"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(TraceUnreadable, match="Is a directory"):
        read_trace(tmp_path)
    bad = Event(5, "lost", detail={"count": "many"})
    with pytest.raises(TraceUnreadable, match="row 3: column 'detail': 'since_ns' or 'count'"):
        read_trace(write(tmp_path / "t.csv", [attach(), bad]))


def test_the_documented_example_is_a_trace(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "trace-format.md").read_text()
    path = tmp_path / "t.csv"
    path.write_text(text.split("```csv\n")[1].split("```")[0])
    trace = read_trace(path)
    assert trace.complete
    assert not trace.warnings
    assert judge(trace)["verdict"] == "vcpu-poll"


PATIENT = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@PATIENT
@given(st.data())
def test_a_file_cut_anywhere_gives_its_whole_rows_or_an_error(
    tmp_path: Path, data: st.DataObject
) -> None:
    whole = write(tmp_path / "whole.csv", EVENTS).read_bytes()
    size = data.draw(st.integers(0, len(whole)))
    path = tmp_path / "cut.csv"
    path.write_bytes(whole[:size])
    rows = whole[:size].count(b"\n") - 1
    if rows < 1:
        with pytest.raises(TraceUnreadable):
            read_trace(path)
    else:
        trace = read_trace(path)
        assert len(trace.frame) == rows
        assert trace.complete == (rows == len(EVENTS))


@PATIENT
@given(st.data())
def test_damage_never_ends_in_another_exception(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(write(tmp_path / "whole.csv", EVENTS).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    path = tmp_path / "damaged.csv"
    path.write_bytes(whole)
    try:
        trace = read_trace(path)
    except TraceUnreadable as error:
        lines = f"{error.message}{error.remedy}"
    else:
        lines = json.dumps(trace.header)
    assert "\n" not in lines


def test_a_detail_is_read_as_json_however_it_is_written() -> None:
    texts = ['{"depth":2}', '{ "note": "x",\n "depth" : 3 }', '{"depth":"4"}', "no JSON", "[5]", "",
             f'{{"depth":{1 << 70}}}', '{"depth":true}']  # fmt: skip
    details = pd.Series(texts, dtype="category")
    assert detail_column(details, "depth", 0).tolist() == [2, 3, 0, 0, 0, 0, 0, 0]
    assert detail_column(details[1:2], "note", "").tolist() == ["x"]
    assert detail_column(details[:0], "depth", 0).tolist() == []
    assert detail_column(pd.Series([None], dtype=details.dtype), "depth", -1).tolist() == [-1]


def test_a_key_that_is_written_in_escapes_is_found_too() -> None:
    texts = ['{"dep\\u0074h": 4}', '{"other": "depth"}', '{"depth": 5, "step": "end"}']
    details = pd.Series(texts, dtype="category")
    found = detail_columns(details, {"depth": 0, "step": ""})
    assert found["depth"].tolist() == [4, 0, 5]
    assert found["step"].tolist() == ["", "", "end"]


@pytest.mark.parametrize("text", ["", "-0x1", "0x1ffffffffffffffff", "bh", None, 7.5])
def test_what_is_no_address_is_none(text: object) -> None:
    assert address_of(text) == 0
