"""Parquet files that are broken, foreign or cut off: what is wrong, and in which row and column."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from qtrace.analysis import judge
from qtrace.errors import ExitStatus, TraceUnreadable
from qtrace.trace.arrow import PARQUET
from qtrace.trace.reader import read_trace

SAMPLE = Path(__file__).parents[2] / "analysis/samples/main-loop-7.2-tcg.parquet"
TABLE: pa.Table = pq.read_table(SAMPLE)
GROUP = 200
Change = Callable[[pa.Table], pa.Table]


def write(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path, compression="zstd", row_group_size=GROUP)
    return path


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """The sample as qtrace writes it, in several row groups."""
    path = tmp_path / "t.parquet"
    pq.write_table(TABLE, path, row_group_size=GROUP, **PARQUET)
    return path


def column(name: str, make: Callable[[pa.ChunkedArray], Any]) -> Change:
    at = TABLE.schema.get_field_index(name)
    return lambda table: table.set_column(at, name, make(table[name]))


def value(name: str, new: Any, kind: pa.DataType | None = None, row: int = 7) -> Change:
    """One row's value, numbered as in the file."""

    def change(old: pa.ChunkedArray) -> Any:
        values = old.cast(kind or old.type).to_pylist()
        values[row - 2] = new
        return pa.array(values, kind or old.type)

    return column(name, change)


def raw(name: str, new: bytes, row: int = 7) -> Change:
    """Bytes that are no text where text should be."""

    def change(old: pa.ChunkedArray) -> Any:
        values = old.cast(pa.binary()).to_pylist()
        values[row - 2] = new
        return pa.array(values, pa.binary()).view(pa.string())

    return column(name, change)


BROKEN: dict[str, tuple[Change, str]] = {
    "another program's file": (
        lambda _: pa.table({"name": ["me"], "age": [3]}), "is no trace: it does not have the colum",
    ),
    "no rows": (lambda table: table.slice(0, 0), "is no trace: it has no attach row"),
    "no attach row": (lambda table: table.slice(1), "is no trace: it has no attach row"),
    "two recordings": (
        lambda table: pa.concat_tables([table, table]),
        f"row {len(TABLE) + 2}: a second attach row",
    ),
    "another major version": (
        column("detail", lambda old: pc.replace_substring(old, "[1,0]", "[2,3]")),
        "has the trace format 2.3; this qtrace reads 1.x",
    ),
    "missing column": (lambda table: table.drop_columns(["bh"]), "row 1: column 'bh' is missing"),
    "column twice": (
        lambda table: table.append_column("bh", table["bh"]), "row 1: column 'bh' is there twice",
    ),
    "time as a float": (
        column("time_ns", lambda old: old.cast(pa.float64())),
        "row 1: column 'time_ns' holds double, no integers",
    ),
    "time as a timestamp": (
        column("time_ns", lambda old: old.cast(pa.timestamp("ns"))),
        "row 1: column 'time_ns' holds timestamp[ns], no integers",
    ),
    "time as text": (
        column("time_ns", lambda old: old.cast(pa.string())),
        "row 1: column 'time_ns' holds string, no integers",
    ),
    "names as numbers": (
        column("name", lambda old: pa.array(range(len(old)))),
        "row 1: column 'name' holds int64, no text",
    ),
    "no time": (value("time_ns", None), "row 7: column 'time_ns' is empty"),
    "no time in a later row group": (
        value("time_ns", None, row=777), "row 777: column 'time_ns' is empty",
    ),
    "no event": (value("event", None), "row 7: column 'event' is empty"),
    "time too large": (value("time_ns", 1 << 63, pa.uint64()), "row 7: column 'time_ns' is out of"),
    "pointer below zero": (value("ctx", -3, pa.int64()), "row 7: column 'ctx' is out of range"),
    "control characters in a name": (
        value("name", "save\x1b[31m"), "row 7: column 'name' holds raw control characters",
    ),
    "a terminal's 8-bit controls": (
        value("thread", "CPU\x9b31m", row=777), "row 777: column 'thread' holds raw control charac",
    ),
    "control characters in an event": (
        value("event", "run\n"), "row 7: column 'event' holds raw control characters",
    ),
    "not UTF-8": (raw("name", b"save\xff\xfe", row=777), "row 777: column 'name' is not UTF-8"),
    "a header that is not UTF-8": (raw("detail", b"{\xff}", 2), "row 2: column 'detail' is not"),
    "a header that is no JSON": (value("detail", "{", row=2), "row 2: column 'detail' is no JSON"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_each_kind_of_broken_file_has_its_own_error(tmp_path: Path, kind: str) -> None:
    change, message = BROKEN[kind]
    refused(write(tmp_path / "t.parquet", change(TABLE)), message)


def refused(path: Path, message: str) -> None:
    with pytest.raises(TraceUnreadable) as caught:
        read_trace(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.remedy
    assert caught.value.exit_status == ExitStatus.ENVIRONMENT


def test_a_file_that_is_cut_off_says_so(sound: Path) -> None:
    """In a row group, in its index, or right after its beginning."""
    whole = sound.read_bytes()
    for size in (len(whole) // 2, len(whole) - 20, 5, 4):
        sound.write_bytes(whole[:size])
        refused(sound, "is cut off: a Parquet file has its index at its end")


def test_a_hole_in_a_file_is_found(sound: Path) -> None:
    whole = sound.read_bytes()
    sound.write_bytes(whole[:400] + whole[500:])
    refused(sound, "row 2: column 'time_ns' is damaged in the 200 rows from here on")


@pytest.mark.parametrize(("group", "name"), [(0, "stack"), (1, "time_ns"), (3, "opaque")])
def test_a_damaged_page_is_named_by_its_rows_and_column(sound: Path, group: int, name: str) -> None:
    where = pq.read_metadata(sound).row_group(group).column(TABLE.schema.get_field_index(name))
    data = bytearray(sound.read_bytes())
    data[where.data_page_offset + where.total_compressed_size // 2] ^= 1
    sound.write_bytes(data)
    refused(sound, f"row {2 + GROUP * group}: column '{name}' is damaged in the {GROUP} rows from")


def test_many_small_row_groups_are_read_as_one_file(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(TABLE, path, row_group_size=1)
    frame = read_trace(path).frame
    assert frame.astype(object).equals(read_trace(SAMPLE).frame.astype(object))


def test_rows_of_an_unknown_kind_are_skipped_and_told(tmp_path: Path) -> None:
    """A minor version may add kinds; nothing is missing without a word."""
    path = write(tmp_path / "t.parquet", value("event", "dance", row=777)(TABLE))
    trace = read_trace(path)
    assert len(trace.frame) == len(TABLE) - 1
    assert trace.warnings == [
        "1 rows of the unknown kind 'dance' were skipped, the first is row 777"
    ]


@pytest.mark.parametrize("text", [pa.large_string(), pa.dictionary(pa.int16(), pa.string())])
def test_other_programs_may_write_the_columns_in_their_own_way(
    tmp_path: Path, text: pa.DataType
) -> None:
    changed = pa.schema(
        [
            (field.name, text if pa.types.is_string(field.type) else field.type)
            for field in TABLE.schema
        ]
    )
    found = read_trace(write(tmp_path / "t.parquet", TABLE.cast(changed)))
    assert found.frame.astype(object).equals(read_trace(SAMPLE).frame.astype(object))


def test_a_damaged_file_reads_as_it_was_or_not_at_all(sound: Path) -> None:
    """One bit, some bytes or a hole anywhere: no other exception, no row less, no other value."""
    whole, expected = sound.read_bytes(), read_trace(SAMPLE).frame.astype(object)
    draw, answers = random.Random(1), []
    for _ in range(250):
        data = bytearray(whole)
        # Half of the damage to the index, where it does the oddest things.
        at = draw.randrange(draw.choice((0, len(data) * 2 // 3)), len(data))
        kind = draw.choice(("bit", "bytes", "hole"))
        if kind == "bit":
            data[at] ^= 1 << draw.randrange(8)
        elif kind == "bytes":
            data[at : at + 4] = draw.randbytes(len(data[at : at + 4]))
        else:
            del data[at : at + draw.randrange(1, 300)]
        sound.write_bytes(data)
        try:
            frame = read_trace(sound).frame
        except TraceUnreadable:
            answers.append("refused")
        else:
            assert frame.astype(object).equals(expected)
            answers.append("same")
    assert set(answers) == {"refused", "same"}


def test_a_folder_is_judged_by_its_traces_whatever_lies_beside_them(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no trace")
    (tmp_path / "old.csv").mkdir()
    with pytest.raises(TraceUnreadable, match="no trace at"):
        judge(tmp_path)
    with pytest.raises(TraceUnreadable, match="no trace at"):
        judge(tmp_path / "*.parquet")
    (tmp_path / "a.parquet").write_bytes(SAMPLE.read_bytes())
    assert len(judge(tmp_path)["traces"]) == 1
    for name, text in (("b.csv", b"name,age\nme,3\n"), ("c.parquet", b"")):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(TraceUnreadable, match=name):
            judge(tmp_path)
        (tmp_path / name).unlink()
