"""A raw recording in several files becomes the rows of one, or those of one with known gaps."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrace.errors import OutputFailed
from qtrace.record.all_events.all_program import slot_type
from qtrace.record.rotation import Rotation
from qtrace.trace.chain import file_of, links
from qtrace.trace.convert import convert, convert_files
from qtrace.trace.raw import RawWriter
from qtrace.trace.reader import read_trace
from qtrace.trace.schema import Event
from tests.unit.event_rows import attach, detach, schedule
from tests.unit.event_rows import run as watched_run
from tests.unit.test_raw_rows import HEADER, ended, run

MEANING = {"names": {"50": "a_bh"}, "threads": {"7": ["qemu", "main"]},
           "contexts": {"10": "main"}, "symbols": {"60": "aio_poll+0x124"}}  # fmt: skip
# Runs within runs: of each block some end in a later one.
STACKS = [400, 300, 200, -200, 100, -100, -300, 350, -350, -400] * 6
# Block by block: how many records there are, and how far the mark lies behind the last of them.
BLOCKS = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 9)), min_size=5, max_size=5)


def all_records() -> Any:
    made = np.zeros(len(STACKS), slot_type())
    for number, stack in enumerate(STACKS):
        one = run(stack, bh=stack) if stack > 0 else ended(-stack, bh=-stack)
        made[number]["time_ns"], made[number]["tid"] = 100 + 10 * number, 7
        for field, value in one.items():
            made[number][field] = value
    return made


def record(name: Path, blocks: list[tuple[int, int]], turns: set[int], keep: int | None) -> int:
    """Write the records; after each block of ``turns`` a new file. How many blocks there were."""
    rotation = Rotation(name, 1, keep)
    writer = RawWriter(rotation.first, aside=True)
    writer.begin(slot_type(), HEADER)
    writer.write([rotation.begin(attach(all=[]))])
    writer.flush()
    writer.append_facts(MEANING)
    records, at, count = all_records(), 0, 0
    while at < len(records):
        size, behind = blocks[count % len(blocks)]
        part = records[at : at + size]
        at, count = at + size, count + 1
        writer.append_records(part)
        if count == 2:
            time = int(part["time_ns"][-1])
            writer.write([schedule(time + 1), watched_run(time + 2)])
            writer.flush()
        mark = int(part["time_ns"][-1]) - 10 * behind
        writer.append_facts({}, mark)
        if count in turns:
            rotation.turn(writer, mark)
    writer.append_facts({}, 10**8)
    writer.write([detach()])
    writer.close()
    return count


def text(path: Path) -> bytes:
    """As CSV."""
    made = path.with_name("made.csv")
    convert(path, made, force=True)
    return made.read_bytes()


@settings(max_examples=15, deadline=None)
@given(blocks=BLOCKS, turns=st.sets(st.integers(1, 20), max_size=6), data=st.data())
def test_a_raw_chain_of_any_cuts_becomes_the_rows_of_one_file(
    blocks: list[tuple[int, int]], turns: set[int], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "one").mkdir()
        record(folder / "one/t.csv.raw", blocks, set(), None)
        record(folder / "t.csv.raw", blocks, turns, None)
        one = text(folder / "one/t.csv.raw")
        assert text(folder / "t.csv.raw") == one
        # Each file as one of another kind: the same rows, wherever they are cut then.
        convert_files(folder / "t.csv.raw", folder / "t.csv")
        assert text(folder / "t.csv") == one
        files = links(folder / "t.csv.raw")
        gone = data.draw(st.sets(st.sampled_from(files), max_size=len(files) - 1))
        for file in gone:
            file.unlink()
        trace = read_trace(_converted(folder))
        if files[-1] not in gone:
            there = int(trace.frame["event"].isin(["run", "return"]).sum())
            assert there + sum(gap.number(_is_event) for gap in trace.gaps) == len(STACKS) + 1
            names = trace.frame.loc[(trace.frame["event"] == "run").to_numpy(), "name"]
            assert (names != "").all()


def _converted(folder: Path) -> Path:
    whole = folder / "whole.csv"
    convert(folder / "t.csv.raw", whole)
    return whole


def _is_event(label: str) -> bool:
    return label == "all" or label.startswith("run ")


def test_where_the_next_raw_file_cannot_be_begun_the_last_one_goes_on(tmp_path: Path) -> None:
    name = tmp_path / "t.csv.raw"
    file_of(name, 2).mkdir()
    rotation = Rotation(name, 1, None)
    writer = RawWriter(rotation.first, aside=True)
    writer.begin(slot_type(), HEADER)
    writer.write([rotation.begin(attach(all=[])), Event(50, "job", name="j")])
    writer.append_records(all_records()[:4])
    writer.append_facts(MEANING, 10**8)
    with pytest.raises(OutputFailed, match="is a folder"):
        rotation.turn(writer, 130)
    writer.write([detach()])
    writer.close()
    file_of(name, 2).rmdir()
    trace = read_trace(_converted(tmp_path))
    assert (trace.complete, len(trace.frame)) == (True, 7)
