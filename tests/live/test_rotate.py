"""``--rotate``: a recording in several files loses nothing at a turn, and says what it let go."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from qtrace.analysis import judge
from qtrace.lab.block_load import bench_command, disk_image
from qtrace.lab.guest import Guest, find_qemu
from qtrace.record.launch import launch
from qtrace.record.recording_options import RecordingOptions
from qtrace.record.start import start_recording
from qtrace.trace.chain import file_of, links
from qtrace.trace.convert import convert, convert_files
from qtrace.trace.reader import read_trace
from tests.live.support.attached import WATCHED, attached, save, wait_for
from tests.live.support.benched import ended_well, qtrace_run

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

ROUNDS, REQUESTS = 12, 60013
# A row of a watched bottom half has about half a kilobyte.
SMALL = 4096


def test_each_event_of_all_is_in_one_of_its_files(tmp_path: Path) -> None:
    trace = tmp_path / "trace.parquet"
    command = bench_command(find_qemu("qemu-img"), disk_image(tmp_path), REQUESTS)
    options = ("--all", "--rotate", "128K", "-o", trace)
    status, report, err = qtrace_run(*options, "--", *command)
    assert ended_well(status, report), err
    files = links(trace)
    # At least once at the end, however few times the recorder had its turn.
    assert len(files) > 1, err
    assert sorted(tmp_path.glob("trace*")) == files
    assert (report["complete"], report["lost_events"], report["warnings"]) == (True, 0, [])
    read = read_trace(trace)
    counts = read.detach["all"]
    kinds = ("schedule", "run", "return", "cancel", "delete", "co_schedule")
    assert counts["produced"] == counts["written"] == read.frame["event"].isin(kinds).sum()
    runs = read.frame[(read.frame["event"] == "run").to_numpy()]
    # The depth of each run is known: what was open in one file is so in the next.
    assert runs["detail"].str.startswith('{"depth":').all()
    returns = read.frame[(read.frame["event"] == "return").to_numpy()]
    assert (returns["name"] != "").all()


def test_a_watching_recording_turns_while_a_guest_is_saved(
    qemu_binary: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    options = RecordingOptions(trace, rotate=SMALL)
    with (
        Guest(qemu_binary, firmware="idle") as guest,
        start_recording(guest.pid, options) as recording,
    ):
        for _ in range(ROUNDS):
            save(guest, 1)
            recording.poll(0)
    assert len(links(trace)) > 3
    report = judge([trace])
    (half,) = [one for one in report["bottom_halves"] if one["name"] == WATCHED]
    assert (half["scheduled"], half["verdicts"]) == (ROUNDS, {"main-loop": ROUNDS})
    assert (report["complete"], report["lost_events"]) == (True, 0)
    # Without the middle nobody is cleared.
    file_of(trace, 2).unlink()
    report = judge([trace])
    assert report["verdict"] == "inconclusive"
    assert "file 2 of the chain is missing" in report["warnings"][0]


def test_it_keeps_the_latest_files_of_all(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    command = bench_command(find_qemu("qemu-img"), disk_image(tmp_path), REQUESTS)
    recording, child = launch(
        command, RecordingOptions(tmp_path / "trace.csv.raw", everything=True, rotate=1 << 17,
                                  keep_files=1), output_fd=2,
    )  # fmt: skip
    with recording:
        while not recording.ended:
            recording.poll(0.1)
            assert len(links(recording.path)) <= 1
        recording.stop("target exited")
    assert child.wait() == 0
    assert len(convert_files(recording.path, trace)) == 1
    read = read_trace(trace)
    counts = read.detach["all"]
    (gap,) = read.gaps
    assert (gap.first, read.complete, counts["lost"]) == (1, True, 0)
    kinds = ("schedule", "run", "return", "cancel", "delete", "co_schedule")
    there = read.frame["event"].isin(kinds).sum()
    assert gap.rows is not None
    assert counts["produced"] == there + gap.rows["all"]
    named = read.frame[read.frame["event"].isin(kinds[:3]).to_numpy()]
    nameless = named[(named["name"] == "").to_numpy()]
    # The return of a run that was in the file before does not tell of what.
    assert list(nameless["event"]) in ([], ["return"]), nameless
    assert judge([trace])["verdict"] == "inconclusive"


@pytest.mark.parametrize("options", [["--all"], []], ids=["all", "watched"])
def test_after_sigkill_each_file_can_be_read(options: list[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.parquet"
    growing = tmp_path / ("trace.parquet.raw" if options else "trace.parquet.partial.csv")
    with (
        Guest(find_qemu(), firmware="idle") as guest,
        attached(guest.pid, *options, "--rotate", "64K", "-o", trace) as attach,
    ):
        wait_for(lambda: save(guest, 5) is None and len(links(growing)) > 2)
        attach.process.send_signal(signal.SIGKILL)
        attach.process.wait()
    done = convert(growing, tmp_path / "whole.csv")
    assert not done.complete
    files = convert_files(growing, tmp_path / "each.csv")
    one, many = read_trace(tmp_path / "whole.csv"), read_trace(tmp_path / "each.csv")
    assert len(files) > 2
    assert list(one.frame["time_ns"]) == list(many.frame["time_ns"])
    assert (one.lost_events, one.gaps) == (0, ())
    assert ((one.frame["event"] == "run") & (one.frame["name"] == WATCHED)).sum() > 5
