"""``qtrace attach`` on real QEMUs: every schedule and run, who, where, and every way to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qtrace.analysis import judge
from qtrace.lab.guest import Accelerator, Guest, find_qemu
from qtrace.record.ebpf.bpf_program import load_ahead
from qtrace.record.recording_options import RecordingOptions
from qtrace.record.start import start_recording
from qtrace.trace.reader import read_trace
from tests.live.support.attached import (
    WATCHED,
    attached,
    is_running,
    refused,
    save,
    wait_for,
    watched_half,
)
from tests.live.support.older_kernel import take_perf_events

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

ROUNDS = 23


def test_every_schedule_and_run_of_an_idle_guest_is_recorded_on_the_main_loop(
    qemu_binary: Path, accel: Accelerator
) -> None:
    with Guest(qemu_binary, accel, firmware="idle") as guest, attached(guest.pid) as attach:
        save(guest, ROUNDS)
        status, report, _err = attach.end()
    half = watched_half(report)
    assert status == 0
    assert (report["verdict"], report["complete"], report["lost_events"]) == ("main-loop", True, 0)
    assert half["scheduled"] == ROUNDS
    assert half["verdicts"] == {"main-loop": ROUNDS}
    assert half["findings"] == []


def test_a_vcpu_without_a_name_is_found_by_its_stack(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    with (
        Guest(qemu_binary, accel, debug_threads=False, idle_sockets=200) as guest,
        start_recording(guest.pid, RecordingOptions(trace)) as recording,
    ):
        rows = []
        while not any(row.event == "run" and row.role == "vcpu" for row in rows):
            save(guest, 1)
            rows += recording.poll(0)
    report = judge([trace])
    assert report["verdict"] == "vcpu-poll"
    finding = watched_half(report)["findings"][0]
    assert finding["role"] == "vcpu"
    assert finding["context"] == "main"
    assert finding["scheduled_by_tid"] == guest.pid
    stack = finding["stack"]
    assert stack[:3] == [WATCHED, "aio_bh_poll", "aio_poll"]
    assert stack.index("blk_pwrite") < stack.index("memory_region_dispatch_write")
    assert "cpu_exec" in stack or "kvm_cpu_exec" in stack


def test_a_schedule_is_on_a_coroutine_and_says_so(tmp_path: Path, qemu_binary: Path) -> None:
    trace = tmp_path / "trace.csv"
    with Guest(qemu_binary, firmware="idle") as guest, attached(guest.pid, "-o", trace) as attach:
        save(guest, 2)
        attach.end()
    frame = read_trace(trace).frame
    schedules = frame[frame["event"] == "schedule"]
    assert len(schedules) == 2
    assert all(stack.startswith("[coroutine];") for stack in schedules["stack"])
    runs = frame[frame["event"] == "run"]
    assert not runs["stack"].str.contains(r"\[", regex=True).any()
    assert (runs["bh"] != 0).all()
    assert set(runs["ctx"]) == set(schedules["ctx"])


def test_an_iothreads_own_bottom_half_is_no_finding(qemu_binary: Path, accel: Accelerator) -> None:
    iothread = ("-object", "iothread,id=io7")
    with (
        Guest(qemu_binary, accel, firmware="idle", extra_args=iothread) as guest,
        attached(guest.pid, "-b", "iothread_stop_bh") as attach,
    ):
        guest.qmp.command("object-del", id="io7")
        status, report, _err = attach.end()
    half = watched_half(report, "iothread_stop_bh")
    assert status == 0
    assert half["verdicts"] == {"iothread": 1}


def test_a_job_that_ends_in_a_nested_loop_of_the_main_thread_is_reported(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    nodes = [
        argument
        for node in ("source", "target")
        for argument in ("-blockdev", f"driver=null-co,node-name={node},size=1073741824")
    ]
    with (
        Guest(qemu_binary, accel, firmware="idle", extra_args=nodes) as guest,
        attached(guest.pid, "-b", "job_exit", "-o", trace) as attach,
    ):
        guest.qmp.command(
            "blockdev-mirror", device="source", target="target", sync="full", speed=1,
            **{"job-id": "mirror"},
        )  # fmt: skip
        guest.qmp.command("quit")
        status, report, _err = attach.result()
    assert status == 0
    assert watched_half(report, "job_exit")["verdicts"] == {"nested-poll": 1}
    frame = read_trace(trace).frame
    (stack,) = frame[frame["event"] == "run"]["stack"]
    names = [name.partition("+")[0] for name in stack.split(";")]
    assert (
        names.index("qemu_cleanup") < names.index("job_cancel_sync_all") < names.index("aio_poll")
    )
    assert read_trace(trace).exit == {"status": 0}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_recording_with_its_verdict(number: signal.Signals) -> None:
    with Guest(find_qemu(), firmware="idle") as guest, attached(guest.pid) as attach:
        save(guest, 3)
        status, report, err = attach.end(number)
        assert status == 0
        assert watched_half(report)["scheduled"] == 3
        assert err == ""
        assert is_running(guest.pid)


def test_the_duration_ends_the_recording() -> None:
    with (
        Guest(find_qemu(), firmware="idle") as guest,
        attached(guest.pid, "--duration", "200ms") as attach,
    ):
        status, report, _err = attach.result()
    assert (status, report["verdict"]) == (0, "not-seen")


def test_the_targets_death_ends_the_recording_and_is_reported(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    with Guest(find_qemu(), firmware="idle") as guest, attached(guest.pid, "-o", trace) as attach:
        save(guest, 5)
        os.kill(guest.pid, signal.SIGKILL)
        status, report, _err = attach.result()
    assert status == 0
    assert watched_half(report)["verdicts"] == {"main-loop": 5}
    read = read_trace(trace)
    assert read.complete
    assert read.exit == {"signal": signal.SIGKILL}


def test_after_sigkill_of_qtrace_the_trace_is_readable_and_the_guest_untouched(
    tmp_path: Path,
) -> None:
    trace = tmp_path / "trace.csv"
    with Guest(find_qemu(), firmware="idle") as guest:
        before = code_at_watched_sites(guest.pid)
        with attached(guest.pid, "-o", trace) as attach:
            assert code_at_watched_sites(guest.pid) != before
            save(guest, 7)
            wait_for_rows(trace, 21)  # schedule, run and return
            attach.process.kill()
            attach.process.wait()
        save(guest, 1)
        assert is_running(guest.pid)
        assert code_at_watched_sites(guest.pid) == before
    report = judge([trace])
    assert not report["complete"]
    assert watched_half(report)["verdicts"] == {"main-loop": 7}


def test_kernels_without_links_for_uprobes_take_perf_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_perf_events(monkeypatch)
    trace = tmp_path / "trace.csv"
    with (
        Guest(find_qemu(), firmware="idle") as guest,
        start_recording(guest.pid, RecordingOptions(trace)) as recording,
    ):
        save(guest, ROUNDS)
        recording.poll(0)
    assert watched_half(judge([trace]))["verdicts"] == {"main-loop": ROUNDS}


def test_losses_are_counted_by_site_and_make_the_verdict_inconclusive(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    # A save makes three events with a stack: one page takes two of them.
    program = load_ahead(ring_pages=1)
    with (
        Guest(find_qemu(), firmware="idle") as guest,
        start_recording(guest.pid, RecordingOptions(trace), program=program) as recording,
    ):
        save(guest, ROUNDS)
        recording.poll(0)
    report = judge([trace])
    lost = [facts for facts in lost_facts(trace) if "probes" not in facts]
    kinds = Counter(read_trace(trace).frame["event"])
    count = sum(facts["count"] for facts in lost)
    assert 0 < count <= report["lost_events"]
    # schedule, run, save_snapshot()
    assert count + kinds["schedule"] + kinds["run"] + kinds["call"] == 3 * ROUNDS
    assert report["verdict"] == "inconclusive"


def lost_facts(trace: Path) -> list[dict[str, Any]]:
    frame = read_trace(trace).frame
    return [json.loads(text) for text in frame.loc[frame["event"] == "lost", "detail"]]


def test_a_deleted_binary_with_spaces_in_another_mount_namespace(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    wrapper = tmp_path / "qemu"
    wrapper.write_text(
        "#!/bin/sh\n"
        f"export QEMU_MODULE_DIR=/usr/lib/x86_64-linux-gnu/qemu\n"
        f'exec unshare -m sh -c \'mount -t tmpfs none "{folder}" && '
        f'cp {find_qemu()} "{folder}/my qemu" && exec "{folder}/my qemu" "$@"\' sh "$@"\n'
    )
    wrapper.chmod(0o755)
    with Guest(wrapper, firmware="idle") as guest:
        subprocess.run(
            ["nsenter", "-m", "-t", str(guest.pid), "rm", f"{folder}/my qemu"], check=True
        )
        with attached(guest.pid) as attach:
            save(guest, 3)
            status, report, _err = attach.end()
    assert status == 0
    assert watched_half(report)["verdicts"] == {"main-loop": 3}
    assert report["target"]["program"] == "my qemu"


def test_other_bottom_halves_are_watched_by_pattern() -> None:
    with Guest(find_qemu(), firmware="idle") as guest, attached(guest.pid, "-b", "job_*") as attach:
        save(guest, 11)
        status, report, _err = attach.end()
    assert status == 0
    assert [half["name"] for half in report["bottom_halves"]] == ["job_exit"]
    assert watched_half(report, "job_exit")["verdicts"] == {"main-loop": 11}


def test_threads_are_known_from_qmp() -> None:
    with (
        Guest(find_qemu(), firmware="idle", debug_threads=False) as guest,
        attached(guest.pid, "--qmp", guest.second_qmp_socket) as attach,
    ):
        save(guest, 2)
        assert attach.end()[0] == 0


def test_parquet_has_the_same_rows(tmp_path: Path) -> None:
    trace = tmp_path / "trace.parquet"
    with Guest(find_qemu(), firmware="idle") as guest, attached(guest.pid, "-o", trace) as attach:
        save(guest, 3)
        _status, report, _err = attach.end()
    assert {"schema_version": 2, **judge([trace])} == report
    assert list(tmp_path.iterdir()) == [trace]


def test_a_pattern_that_matches_nothing_names_the_nearest() -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        status, err = refused(guest.pid, "-b", "snapshot_sav_job")
    assert status == 2
    assert "snapshot_save_job_bh" in err


def test_an_existing_file_is_kept_without_force(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("precious\n")
    with Guest(find_qemu(), firmware="idle") as guest:
        status, err = refused(guest.pid, "-o", trace)
        assert status == 2
        assert "--force" in err
        assert trace.read_text() == "precious\n"
        with attached(guest.pid, "-o", trace, "--force") as attach:
            save(guest, 1)
            assert attach.end()[0] == 0
    assert judge([trace])["verdict"] == "main-loop"


def test_a_full_disk_ends_the_recording_and_spares_the_guest() -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        status, err = refused(guest.pid, "-o", "/dev/full")
        assert status == 3
        assert "No space left" in err
        save(guest, 1)


def test_a_qmp_socket_that_another_client_holds_is_a_clear_error() -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        status, err = refused(guest.pid, "--qmp", guest.qmp_socket)
    assert status == 3
    assert "another client" in err


def test_a_qemu_without_the_job_code_is_refused_with_what_it_has(tmp_path: Path) -> None:
    daemon = find_qemu().with_name("qemu-storage-daemon")
    socket = tmp_path / "monitor"
    process = subprocess.Popen(
        [daemon, "--chardev", f"socket,id=c,path={socket},server=on,wait=on", "--monitor", "c"]
    )
    try:
        status, err = refused(process.pid)
    finally:
        process.kill()
        process.wait()
    assert status == 3
    assert "job_exit" in err


@pytest.mark.parametrize("pid", [0, -1, 4_000_000])
def test_no_such_process(pid: int) -> None:
    status, err = refused(pid)
    assert status == 3
    assert "no process" in err


def test_a_process_that_is_not_qemu() -> None:
    status, err = refused(os.getpid())
    assert status == 3
    assert "is not a QEMU program" in err


def test_without_privilege_the_remedy_is_named() -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        run = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
             sys.executable, "-m", "qtrace", "attach", "--pid", str(guest.pid)],
            text=True, capture_output=True, env=os.environ | {"HOME": "/tmp"},
        )  # fmt: skip
    assert run.returncode == 3
    assert "root" in run.stderr
    assert "Traceback" not in run.stderr


def code_at_watched_sites(pid: int) -> bytes:
    from qtrace.process.process import Process
    from qtrace.sites.scan_cache import scan_module
    from qtrace.sites.watch import plan_watch

    process = Process(pid)
    module = process.binary
    plan = plan_watch(scan_module(module), module)
    return b"".join(process.memory.read(site.vaddr + module.bias, 8) for site in plan.sites)


def wait_for_rows(trace: Path, count: int) -> None:
    wait_for(lambda: trace.read_text().count(f",{WATCHED},") >= count)
