"""The laboratory: its guest, what it leaves behind (nothing), and the verdicts it shows."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qtrace.errors import LabFailed
from qtrace.lab.guest import Accelerator, Guest, find_qemu
from qtrace.lab.scenario import Setup, run_scenario
from qtrace.lab.scenarios import SCENARIOS, main_loop
from qtrace.lab.snapshot_jobs import save_round
from qtrace.lab.workdir import PREFIX, YOUNG_S, work_folder
from qtrace.machine.readable import readable
from tests.limits import TIMEOUT_S

pytestmark = pytest.mark.qemu

ROOT = Path(__file__).parents[2]


def lab(*arguments: object, tmp: Path | None = None) -> subprocess.Popen[str]:
    environment = os.environ | ({"TMPDIR": str(tmp)} if tmp else {})
    return subprocess.Popen(
        [sys.executable, "-m", "qtrace", "lab", *map(str, arguments)],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def lab_json(*arguments: object) -> dict[str, Any]:
    process = lab(*arguments, "--format", "json")
    out, err = process.communicate()
    assert process.returncode == 0, err
    result: dict[str, Any] = json.loads(out)
    return result


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def ended(pidfd: int) -> bool:
    return bool(readable([pidfd], TIMEOUT_S))


# The guest


def test_the_pflash_guest_writes_without_a_pause(qemu_binary: Path, accel: Accelerator) -> None:
    with Guest(qemu_binary, accel) as guest:
        before = guest.flash_writes()
        assert before > 0
        until(lambda: guest.flash_writes() > before + 1000)


def test_the_idle_guest_writes_nothing_while_snapshots_are_taken(qemu_binary: Path) -> None:
    with Guest(qemu_binary, firmware="idle") as guest:
        for number in range(20):
            save_round(guest.qmp, f"job{number}")
        assert guest.flash_writes() == 0


def test_a_save_round_leaves_no_job_and_a_running_guest(
    qemu_binary: Path, accel: Accelerator
) -> None:
    with Guest(qemu_binary, accel) as guest:
        for number in range(20):
            save_round(guest.qmp, f"job{number}")
        assert guest.qmp.command("query-jobs") == []
        assert guest.qmp.command("query-status")["running"]


def test_threads_are_named_only_when_asked(qemu_binary: Path) -> None:
    def names(guest: Guest) -> set[str]:
        return {p.read_text().strip() for p in Path(f"/proc/{guest.pid}/task").glob("*/comm")}

    with Guest(qemu_binary) as guest:
        assert "CPU 0/TCG" in names(guest)
    with Guest(qemu_binary, debug_threads=False) as guest:
        assert "CPU 0/TCG" not in names(guest)


# What stays behind


def test_nothing_stays_behind_whether_the_context_ends_well_or_not() -> None:
    with Guest(find_qemu()) as guest:
        pass
    assert not guest.folder.exists()
    assert not Path(f"/proc/{guest.pid}").exists()

    with pytest.raises(ZeroDivisionError), Guest(find_qemu()) as guest:
        _ = 1 / 0
    assert not guest.folder.exists()
    assert not Path(f"/proc/{guest.pid}").exists()


def test_a_killed_owner_leaves_no_qemu(tmp_path: Path) -> None:
    script = (
        "import signal; from qtrace.lab.guest import Guest, find_qemu\n"
        "with Guest(find_qemu()) as guest:\n"
        "    print(guest.pid, flush=True); signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE, text=True,
    ) as owner:  # fmt: skip
        assert owner.stdout is not None
        qemu = os.pidfd_open(int(owner.stdout.readline()))
        owner.kill()
    try:
        assert ended(qemu)
    finally:
        os.close(qemu)


def test_a_killed_owners_folder_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    abandoned = tmp_path / f"{PREFIX}abandoned"
    young = tmp_path / f"{PREFIX}young"
    for folder in (abandoned, young):
        folder.mkdir()
    with work_folder() as held:
        long_ago = time.time() - 2 * YOUNG_S
        for folder in (abandoned, held):
            os.utime(folder, (long_ago, long_ago))
        with work_folder():
            assert not abandoned.exists()
            assert young.exists()
            assert held.exists()


@pytest.mark.bpf
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_guest_and_removes_its_folder(
    tmp_path: Path, number: signal.Signals
) -> None:
    trace = tmp_path / "trace.csv"
    folders = tmp_path / "tmp"
    folders.mkdir()
    process = lab("main-loop", "--rounds", 10**6, "-o", trace, tmp=folders)
    until(lambda: trace.exists() and trace.stat().st_size > 0)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    pidfds = [os.pidfd_open(int(pid)) for pid in children]
    process.send_signal(number)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + number
    assert err == ""
    assert pidfds
    for pidfd in pidfds:
        assert ended(pidfd)
        os.close(pidfd)
    assert list(folders.iterdir()) == []


# What can go wrong


def test_a_missing_qemu_is_an_error_with_a_remedy() -> None:
    with pytest.raises(LabFailed, match="nosuch-qemu") as failed:
        find_qemu("nosuch-qemu")
    assert "--qemu" in failed.value.remedy


def test_a_qemu_that_ends_at_once_shows_its_last_line() -> None:
    with (
        pytest.raises(LabFailed, match=r"did not start.*nosuch-device"),
        Guest(find_qemu(), extra_args=("-device", "nosuch-device")),
    ):
        pass


def test_a_program_that_is_no_qemu_is_an_error() -> None:
    with pytest.raises(LabFailed, match="did not start"), Guest(Path("/bin/true")):
        pass


def test_a_qemu_that_crashes_under_way_is_told_from_one_that_does_not_answer() -> None:
    def crash_under_way() -> None:
        with Guest(find_qemu()) as guest:
            os.kill(guest.pid, signal.SIGKILL)
            save_round(guest.qmp, "job")

    with pytest.raises(LabFailed, match="signal 9"):
        crash_under_way()


# The command


def test_every_scenario_is_listed() -> None:
    listed = lab_json("--list")["scenarios"]
    assert [scenario["name"] for scenario in listed] == list(SCENARIOS)
    assert all(scenario["explanation"] for scenario in listed)


def test_neither_a_scenario_nor_list_is_a_usage_error() -> None:
    process = lab()
    _, err = process.communicate()
    assert process.returncode == 2
    assert "--list" in err


@pytest.mark.bpf
def test_vcpu_poll_shows_the_snapshot_job_on_a_vcpu(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    result = lab_json("vcpu-poll", "--qemu", qemu_binary, "--accel", accel, "-o", trace)
    assert (result["verdict"], result["shown"], result["lost_events"]) == ("vcpu-poll", True, 0)
    (half,) = result["bottom_halves"]
    assert half["name"] == "snapshot_save_job_bh"
    assert half["scheduled"] == sum(half["verdicts"].values()) == result["rounds"]
    finding = half["findings"][0]
    assert finding["thread"] == f"CPU 0/{accel.upper()}"
    assert any(frame.startswith("aio_poll") for frame in finding["stack"])
    assert any(frame.startswith("memory_region_dispatch_write") for frame in finding["stack"])
    assert trace.stat().st_size > 0


@pytest.mark.bpf
def test_main_loop_shows_no_finding_with_an_idle_guest(
    qemu_binary: Path, accel: Accelerator
) -> None:
    result = lab_json("main-loop", "--qemu", qemu_binary, "--accel", accel)
    assert (result["verdict"], result["shown"], result["rounds"]) == ("main-loop", True, 200)
    assert result["bottom_halves"][0]["verdicts"] == {"main-loop": 200}


@pytest.mark.bpf
def test_a_verdict_that_was_not_expected_is_not_shown(tmp_path: Path) -> None:
    scenario = dataclasses.replace(main_loop.SCENARIO, expected="stranded")
    seen: list[int] = []
    setup = Setup(find_qemu(), "tcg", 3, 60.0, tmp_path / "trace.csv", False, seen.append)
    result = run_scenario(scenario, setup)
    assert (result["shown"], result["verdict"]) == (False, "main-loop")
    assert seen == [1, 2, 3]


@pytest.mark.bpf
def test_an_existing_trace_is_kept(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("mine")
    process = lab("main-loop", "--rounds", 1, "-o", trace)
    _, err = process.communicate()
    assert process.returncode == 2
    assert "--force" in err
    assert trace.read_text() == "mine"
