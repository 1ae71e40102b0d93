"""``--all``: every event of the event loop, counted; on real QEMU programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qtrace.analysis import judge
from qtrace.lab.block_load import bench_command, disk_image, nbd_url, storage_daemon
from qtrace.lab.firmware import CHIP_BYTES, image
from qtrace.lab.guest import Guest, find_qemu
from qtrace.process.qmp_client import QmpClient
from qtrace.record.all_events.all_program import RING_BYTES
from qtrace.record.launch import launch
from qtrace.record.recording_options import RecordingOptions
from qtrace.record.start import start_recording
from qtrace.sites.watch import DEFAULT_WATCHED
from qtrace.trace.convert import convert
from qtrace.trace.reader import TraceFile, read_trace
from tests.limits import TIMEOUT_S
from tests.live.support.attached import (
    WATCHED,
    attached,
    expected_status,
    is_running,
    save,
    wait_for,
    watched_half,
)
from tests.live.support.benched import REQUESTS, counted, frame_of, qtrace_run
from tests.live.support.loads import answers, recorded

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

ROUNDS = 23
# What an event takes in the raw file, at least.
RECORD_BYTES = 88


def test_losses_are_counted_and_nothing_is_judged_from_incomplete_data(tmp_path: Path) -> None:
    image, raw, trace = find_qemu("qemu-img"), tmp_path / "raw", tmp_path / "trace.csv"
    command = bench_command(image, disk_image(tmp_path), 20011, "-n")
    # One page holds 46 records.
    recording, child = launch(
        command, RecordingOptions(raw, everything=True, ring_pages=1), output_fd=2
    )
    with recording:
        while not recording.ended:
            recording.poll(0.1)
        recording.stop("target exited")
    assert child.wait() == 0
    done = convert(raw, trace)
    read = read_trace(trace)
    counts = read.detach["all"]
    assert counts["lost"] > 0
    assert counts["produced"] == counts["written"] + counts["lost"]
    kinds = ("schedule", "run", "return", "cancel", "delete", "co_schedule")
    assert counts["written"] == read.frame["event"].isin(kinds).sum() == done.rows - meta(read)
    assert read.lost_events == counts["lost"]
    report = judge([trace], ["*"])
    for half in report["bottom_halves"]:
        # Whatever is certain of it is true: qemu-img has one thread that runs bottom halves.
        assert set(half["verdicts"]) <= {"main-loop", "inconclusive", "cancelled"}
    assert any("inconclusive" in half["verdicts"] for half in report["bottom_halves"])


def wait_for_rows(trace: Path, count: int) -> None:
    """Until about so many events lie in the raw file of a trace that is being recorded."""
    raw = trace.with_name(f"{trace.name}.raw")
    wait_for(lambda: raw.stat().st_size > count * RECORD_BYTES)


def meta(read: TraceFile) -> int:
    return int(read.frame["event"].isin(("attach", "lost", "exit", "detach")).sum())


def test_watched_bottom_halves_keep_their_verdicts_and_stacks(
    qemu_binary: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.parquet"
    with (
        Guest(qemu_binary, firmware="idle") as guest,
        attached(guest.pid, "--all", "-o", trace) as attach,
    ):
        save(guest, ROUNDS)
        status, report, err = attach.end()
    assert status == 0, err
    half = watched_half(report)
    assert (half["scheduled"], half["verdicts"]) == (ROUNDS, {"main-loop": ROUNDS})
    assert report["lost_events"] == 0
    frame = read_trace(trace).frame
    own = frame[frame["name"] == WATCHED]
    assert set(own["event"]) == {"schedule", "run", "return"}
    assert (own["event"] == "run").sum() == ROUNDS
    assert not own.loc[own["event"] == "run", "stack"].str.startswith("[partial]").any()
    # Beside them everything else, in its context.
    contexts = frame[frame["event"] == "run"].groupby("name", observed=True)["context"].unique()
    assert list(contexts["job_exit"]) == ["main"]
    assert list(contexts["do_qmp_dispatch_bh"]) == ["iohandler"]
    assert list(tmp_path.iterdir()) == [trace]


def test_the_very_first_one_compiles_its_programs_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # clang is not for two threads at once: this has been a segmentation fault.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    with (
        Guest(find_qemu(), firmware="idle") as guest,
        attached(guest.pid, "--all", "--duration", "0.1s", "-o", tmp_path / "trace.csv") as attach,
    ):
        status, _report, err = attach.result()
    assert status == 0, err


def test_a_vcpu_that_polls_shows_in_every_row(qemu_binary: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    with (
        Guest(qemu_binary) as guest,
        attached(guest.pid, "--all", "-o", trace) as attach,
    ):
        wait_for_rows(trace, 10_000)
        status, report, err = attach.end()
    assert status == expected_status(report), (err, report)
    frame = read_trace(trace).frame
    runs = frame[(frame["event"] == "run") & (frame["name"] == "thread_pool_completion_bh")]
    vcpu = runs[runs["role"] == "vcpu"]
    assert len(vcpu) > 100
    assert vcpu["stack"].str.contains(";aio_poll+0x", regex=False).all()
    assert set(vcpu["context"]) == {"main"}
    scheduled = frame[(frame["event"] == "schedule") & (frame["name"] == runs["name"].iloc[0])]
    assert {"worker", "vcpu"} <= set(scheduled["role"])


def test_of_every_nth_event_the_whole_stack_is_there(qemu_binary: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.parquet"
    with (
        Guest(qemu_binary) as guest,
        attached(guest.pid, "--all", "--stacks-every", "97", "-o", trace) as attach,
    ):
        wait_for_rows(trace, 20_000)
        status, report, err = attach.end()
    assert status == expected_status(report), (err, report)
    read = read_trace(trace)
    assert read.header["stacks_every"] == 97
    rows = read.frame[read.frame["event"].isin(("run", "schedule"))]
    rows = rows[~rows["name"].isin(list(DEFAULT_WATCHED))]
    stack = rows["stack"].astype(str)
    whole = rows[~stack.str.startswith("[partial]")]
    assert len(whole) == read.detach["all"]["stacks"] > 0
    # Each CPU counts for itself, and each probe; what is no row, or watched, was counted, too.
    assert 100 < len(whole) <= len(rows) / 97 + 2 * (os.cpu_count() or 1)
    # A whole stack ends with what the others of its kind have.
    tails = {text.removeprefix("[partial];") for text in stack if text.startswith("[partial]")}
    assert all(any(text.endswith(tail) for tail in tails) for text in set(whole["stack"]))
    vcpu = whole[(whole["event"] == "run") & (whole["role"] == "vcpu")]
    assert vcpu["stack"].str.contains("memory_region_dispatch_write", regex=False).all()
    assert len(vcpu) > 5


def test_what_needs_every_bottom_half_says_so() -> None:
    status, _report, err = qtrace_run("--stacks-every", "5", "--", find_qemu("qemu-img"))
    assert (status, "--stacks-every needs --all" in err) == (2, True)


def test_after_sigkill_of_qtrace_convert_brings_back_what_was_recorded(tmp_path: Path) -> None:
    trace, raw = tmp_path / "trace.csv", tmp_path / "trace.csv.raw"
    with Guest(find_qemu()) as guest:
        with attached(guest.pid, "--all", "-o", trace) as attach:
            save(guest, 3)
            wait_for(lambda: raw.read_bytes().count(b'","run","') == 3)
            # Of each block that is moved at once the file says when it is whole, and one may be as
            # large as a processor's ring.
            wait_for_rows(trace, (RING_BYTES + (2 << 20)) // RECORD_BYTES)
            attach.process.kill()
            attach.process.wait()
        assert is_running(guest.pid)
        save(guest, 1)
    run = subprocess.run(
        [sys.executable, "-m", "qtrace", "convert", str(raw), str(trace), "--format", "json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    done = json.loads(run.stdout)
    assert done["complete"] is False
    assert done["rows"] > (1 << 20) // RECORD_BYTES // 2
    assert "cut off" in run.stderr
    report = judge([trace])
    assert not report["complete"]
    # Whose poll ran them is chance: this guest writes to flash.
    assert sum(watched_half(report)["verdicts"].values()) == 3


@pytest.mark.parametrize("cut", [1, 44, 10_000])
def test_a_raw_file_that_was_cut_anywhere_is_read_up_to_there(cut: int, tmp_path: Path) -> None:
    raw = raw_recording(tmp_path)
    whole = convert(raw, tmp_path / "whole.csv").rows
    os.truncate(raw, raw.stat().st_size - cut)
    part = convert(raw, tmp_path / "part.parquet")
    assert part.rows < whole
    assert any("cut off" in text for text in part.warnings)
    assert not part.complete


def test_csv_and_parquet_become_each_other(tmp_path: Path) -> None:
    raw = raw_recording(tmp_path)
    first, second, third = (tmp_path / n for n in ("a.csv", "b.parquet", "c.csv"))
    for source, target in ((raw, first), (first, second), (second, third)):
        convert(source, target)
    assert first.read_bytes() == third.read_bytes()


def raw_recording(folder: Path) -> Path:
    """A raw recording of qemu-img."""
    raw = folder / "recording.raw"
    command = bench_command(find_qemu("qemu-img"), disk_image(folder), REQUESTS)
    recording, child = launch(command, RecordingOptions(raw, everything=True), output_fd=2)
    with recording:
        while not recording.ended:
            recording.poll(0.1)
    child.wait()
    return raw


def test_an_iothreads_events_have_its_thread_and_context(qemu_binary: Path, tmp_path: Path) -> None:
    disk, nbd, qmp = disk_image(tmp_path), tmp_path / "nbd", tmp_path / "qmp"
    trace = tmp_path / "trace.csv"
    process = subprocess.Popen(
        [qemu_binary, "-nodefaults", "-display", "none", "-S", "-machine", "none",
         "-object", "iothread,id=io7",
         "-blockdev", f"driver=file,node-name=disk,filename={disk}",
         "-qmp", f"unix:{qmp},server=on,wait=off", "-qmp", f"unix:{qmp}2,server=on,wait=off"]
    )  # fmt: skip
    try:
        wait_for(lambda: answers(qmp))
        with QmpClient(qmp) as client:
            client.command("nbd-server-start", addr={"type": "unix", "data": {"path": str(nbd)}})
            client.command(
                "block-export-add", type="nbd", id="e", iothread="io7",
                **{"node-name": "disk"},
            )  # fmt: skip
            threads = {t["id"]: t["thread-id"] for t in client.command("query-iothreads")}
            with attached(process.pid, "--all", "--qmp", f"{qmp}2", "-o", trace) as attach:
                bench_over_nbd(qemu_binary, nbd_url(nbd))
                status, report, err = attach.end()
            assert status == expected_status(report), (err, report)
    finally:
        process.kill()
        process.wait()
    check_iothread(trace, process.pid, "iothread:io7", threads["io7"])


def test_a_storage_daemons_iothread_is_known_without_its_help(
    qemu_binary: Path, tmp_path: Path
) -> None:
    program, trace = qemu_binary.with_name("qemu-storage-daemon"), tmp_path / "trace.parquet"
    with storage_daemon(program, disk_image(tmp_path), "io7") as (pid, url):
        with attached(pid, "--all", "-o", trace) as attach:
            bench_over_nbd(qemu_binary, url)
            status, report, err = attach.end()
        assert status == expected_status(report), (err, report)
    frame = frame_of(trace)
    (name,) = {c for c in frame["context"] if str(c).startswith("iothread:")}
    tid = frame.loc[(frame["context"] == name) & (frame["event"] == "run"), "tid"].iloc[0]
    check_iothread(trace, pid, name, int(tid))


def bench_over_nbd(qemu: Path, url: str) -> None:
    """QEMU 7.2 aborts when this client goes away (see ``storage_daemon``): the last thing to do."""
    command = bench_command(qemu.with_name("qemu-img"), url, 503)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def check_iothread(trace: Path, pid: int, context: str, tid: int) -> None:
    frame = frame_of(trace)
    runs = frame[frame["event"] == "run"]
    ours = runs[runs["context"] == context]
    assert len(ours) > 100
    assert set(ours["tid"]) == {tid}
    assert tid != pid
    assert set(ours["role"]) == {"iothread"}
    assert ours["stack"].str.contains(";aio_poll+0x", regex=False).all()
    others = runs[runs["context"] != context]
    assert set(others["tid"]) <= {pid}
    assert set(others["context"]) <= {"main", "iohandler"}


def test_a_size_ends_the_recording_in_good_order(tmp_path: Path) -> None:
    trace = tmp_path / "trace.parquet"
    with (
        Guest(find_qemu()) as guest,
        attached(guest.pid, "--all", "--max-size", "1M", "-o", trace) as attach,
    ):
        status, report, err = attach.result()
    assert status == expected_status(report), (err, report)
    assert report["complete"]
    assert read_trace(trace).detach["reason"] == "size"


def test_too_dear_probes_are_dropped_and_watching_goes_on(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    with (
        Guest(find_qemu()) as guest,
        attached(guest.pid, "--all", "--max-overhead", "0.001", "-o", trace) as attach,
    ):
        assert attach.process.stderr is not None
        while "its probes" not in (line := attach.process.stderr.readline()):
            assert line
        save(guest, 5)
        status, report, err = attach.end()
    assert status in (1, expected_status(report)), (err, report)
    assert watched_half(report)["scheduled"] == 5
    read = read_trace(trace)
    dropped = read.detach["all"]["dropped_ns"]
    own = ~read.frame["name"].isin(list(DEFAULT_WATCHED)) & (read.frame["bh"] != 0)
    assert 0 < read.frame.loc[own, "time_ns"].max() < dropped
    # The saves went on after that.
    assert (read.frame.loc[read.frame["name"] == WATCHED, "time_ns"] > dropped).any()


def test_the_first_finding_ends_the_recording(tmp_path: Path) -> None:
    with (
        Guest(find_qemu(), idle_sockets=200) as guest,
        attached(guest.pid, "--until-finding", "--all") as attach,
        ThreadPoolExecutor(1) as pool,
    ):
        result = pool.submit(attach.result)
        while not result.done():
            save(guest, 1)
        status, report, _err = result.result()
    assert status == 1
    assert report["verdict"] == "vcpu-poll"
    # That of the save, or of the one that deletes the snapshot again.
    assert any(half["findings"] for half in report["bottom_halves"])


# qtrace run


def test_the_probes_are_armed_before_the_first_instruction(
    qemu_binary: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    image = qemu_binary.with_name("qemu-img")
    target = tmp_path / "new.qcow2"
    status, report, err = qtrace_run(
        "--all", "-o", trace, "--", image, "create", "-f", "qcow2", target, "1M"
    )
    assert status == 0, err
    rows = counted(trace)
    assert rows["run"] > 0
    assert rows["run"] == rows["return"]
    # Nothing was scheduled before the recording began.
    judged = judge([trace], ["*"])
    assert report["target"]["program"] == "qemu-img"
    assert all("inconclusive" not in half["verdicts"] for half in judged["bottom_halves"])


@pytest.mark.parametrize("options", [(), ("--all",)], ids=["watch", "all"])
def test_a_program_that_ends_at_once_is_recorded_and_reported(options: tuple[str, ...]) -> None:
    # It ends long before its contexts, threads and mappings can be looked at.
    for _ in range(5):
        status, report, err = qtrace_run(*options, "--", find_qemu("qemu-img"), "--version")
        assert "qemu-img exited with status 0" in err
        assert (status, report["complete"]) == (0, True)


def test_stacks_of_a_guest_that_was_started_lead_through_its_translated_code(
    qemu_binary: Path, tmp_path: Path
) -> None:
    # QEMU makes the buffer for it, and describes it, long after its first instruction.
    trace, qmp = tmp_path / "trace.parquet", tmp_path / "qmp"
    chips = [tmp_path / "unit0", tmp_path / "unit1"]
    chips[0].write_bytes(image("pflash"))
    chips[1].write_bytes(bytes(CHIP_BYTES))
    drives = [f"if=pflash,unit={unit},format=raw,file={chip}" for unit, chip in enumerate(chips)]
    command = [qemu_binary, "-accel", "tcg", "-nodefaults", "-display", "none",
               "-drive", drives[0], "-drive", drives[1],
               "-qmp", f"unix:{qmp},server=on,wait=off"]  # fmt: skip
    options = ("--stacks-every", "97")
    with recorded(trace, *command, options=options, end="signal", value=signal.SIGKILL) as pid:
        wait_for(lambda: answers(qmp))
        wait_for_rows(trace, (1 << 20) // RECORD_BYTES)
        # Stacks are unwound while it lives, behind the events of the same time.
        raw = trace.with_name(f"{trace.name}.raw")
        wait_for(lambda: b";memory_region_dispatch_write+" in raw.read_bytes())
        # A "quit" would hang most of the time: main in pause_all_vcpus() waits for a vCPU that
        # polls for its write, with or without probes.
        os.kill(pid, signal.SIGKILL)
    frame = read_trace(trace).frame
    runs = frame[frame["stack"].str.contains(";memory_region_dispatch_write+", regex=False)]
    assert len(runs) > 5
    assert runs["stack"].str.contains("cpu_exec.*;code_gen_buffer", regex=True).all()
    # Nobody named its threads.
    assert set(runs["role"]) == {"vcpu"}


def test_a_program_that_fails_is_reported(tmp_path: Path) -> None:
    status, _report, err = qtrace_run("--", find_qemu("qemu-img"), "info", tmp_path / "nothing")
    assert "qemu-img exited with status 1" in err
    assert "nothing" in err
    assert status == 0


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (["no-such-qemu"], "there is no program"),
        (["/bin/true"], "true has executed no QEMU program"),
    ],
)
def test_what_cannot_be_run_is_refused(command: list[str], what: str) -> None:
    status, report, err = qtrace_run("--all", "--", *command)
    assert (status, report) == (3, {})
    assert what in err


def test_a_signal_reaches_the_program(tmp_path: Path) -> None:
    disk = disk_image(tmp_path)
    command = bench_command(find_qemu("qemu-img"), disk, 1_000_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "qtrace", "run", "--format", "json", "--", *command],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline().startswith("recording")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert "was ended by signal 15" in err
    assert json.loads(out)["traces"][0]["exit"] == {"signal": 15}


def test_the_rows_of_a_recording_stay_out_of_the_way_of_its_end(tmp_path: Path) -> None:
    """start_recording and stop at once: nothing to convert but the frame of a trace."""
    raw = tmp_path / "raw"
    with Guest(find_qemu(), firmware="idle") as guest:
        start_recording(guest.pid, RecordingOptions(raw, everything=True)).stop("at once")
    done = convert(raw, tmp_path / "t.csv")
    assert done.complete
    assert read_trace(tmp_path / "t.csv").lost_events == 0
