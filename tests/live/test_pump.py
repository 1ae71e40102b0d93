"""A recording that goes on by itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qtrace.errors import OutputFailed
from qtrace.lab.guest import Guest, find_qemu
from qtrace.record.pump import Pump, pumped
from qtrace.record.recording_options import RecordingOptions
from qtrace.trace.reader import read_trace
from qtrace.trace.schema import Event
from tests.limits import TIMEOUT_S
from tests.live.support.attached import WATCHED, save, wait_for

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

ROUNDS = 20


def test_rows_are_taken_while_the_owner_does_something_else(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    seen: list[Event] = []

    def runs() -> int:
        seen.extend(pump.wait(0.1))
        return sum(row.event == "run" and row.name == WATCHED for row in seen)

    with Guest(find_qemu(), firmware="idle") as guest:
        with pumped(guest.pid, RecordingOptions(trace), "over") as pump:
            save(guest, ROUNDS)
            wait_for(lambda: runs() == ROUNDS)
            assert pump.runs
        assert not pump.runs
    read = read_trace(trace)
    assert read.detach["reason"] == "over"
    assert (read.frame["event"] == "run").sum() == ROUNDS


def test_the_end_of_the_target_is_the_end_of_the_recording(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    with (
        Guest(find_qemu(), firmware="idle") as guest,
        pumped(guest.pid, RecordingOptions(trace), "over") as pump,
    ):
        guest.qmp.command("quit")
        pump.wait_for_end(TIMEOUT_S)
        assert not pump.runs
        assert pump.take()[-1].event == "exit"
    assert read_trace(trace).detach["reason"] == "target exited"


def test_what_the_recorder_fails_with_reaches_its_owner(tmp_path: Path) -> None:
    pipe = tmp_path / "trace.csv"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    def use(pump: Pump) -> None:
        os.close(reader)
        save(guest, ROUNDS)
        wait_for(lambda: pump.wait(0.1) and False)

    with (
        Guest(find_qemu(), firmware="idle") as guest,
        pytest.raises(OutputFailed, match="Broken pipe"),
        pumped(guest.pid, RecordingOptions(pipe), "over") as pump,
    ):
        use(pump)
