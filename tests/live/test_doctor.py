"""qtrace doctor on this host, on real QEMUs, and for a user who may do nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qtrace.host.capabilities import check_host
from qtrace.sites.target_check import STEPS

ROOT = Path(__file__).resolve().parents[2]


def doctor(*options: str) -> tuple[int, dict[str, Any]]:
    run = subprocess.run(
        [sys.executable, "-m", "qtrace", "doctor", "--format", "json", *options],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.stderr == ""
    return run.returncode, json.loads(run.stdout)


def states(report: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["state"] for check in report["checks"]}


@pytest.fixture
def qemu(qemu_binary: Path, tmp_path: Path) -> Iterator[int]:
    """The pid of a QEMU that has started; -daemonize returns when it has."""
    pid_file = tmp_path / "pid"
    subprocess.run(
        [qemu_binary, "-M", "none", "-S", "-display", "none", "-daemonize", "-pidfile", pid_file],
        check=True,
    )
    pid = int(pid_file.read_text())
    yield pid
    os.kill(pid, signal.SIGKILL)


@pytest.mark.bpf
@pytest.mark.gdb
def test_a_host_with_everything_is_ready() -> None:
    status, report = doctor()
    assert (status, report["schema_version"], report["ready"]) == (0, 2, True)
    assert set(states(report).values()) == {"ok"}


@pytest.mark.bpf
@pytest.mark.qemu
def test_a_stock_qemu_can_be_recorded(qemu: int) -> None:
    status, report = doctor("--pid", str(qemu))
    found = {check["name"]: check for check in report["checks"]}
    assert status == 0, report
    assert all(found[step]["state"] == "ok" for step in STEPS)
    assert "snapshot_save_job_bh" in found["bottom halves"]["detail"]


@pytest.mark.bpf
@pytest.mark.gdb
@pytest.mark.qemu
def test_a_qemu_under_gdb_can_still_be_recorded(qemu: int) -> None:
    gdb = subprocess.Popen(
        ["gdb", "-nx", "-q", "-iex", "set debuginfod enabled off",
         "-iex", "set auto-solib-add off", "-p", str(qemu), "-ex", "echo attached\\n"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert gdb.stdout is not None
    try:
        assert any("attached" in line for line in gdb.stdout)
        status, report = doctor("--pid", str(qemu))
    finally:
        gdb.communicate("detach\nquit\n")
    tracer = next(check for check in report["checks"] if check["name"] == "tracer")
    assert (tracer["state"], tracer["needed_for"]) == ("missing", ["gdb"])
    assert f"traced by process {gdb.pid} (gdb)" in tracer["detail"]
    assert status == 0


def test_a_process_that_is_not_qemu_is_named_and_the_rest_untried() -> None:
    status, report = doctor("--pid", str(os.getpid()))
    found = [check for check in report["checks"] if check["name"] in STEPS]
    first = next(index for index, check in enumerate(found) if check["state"] != "ok")
    assert status == 3
    assert (found[first]["state"], *{check["state"] for check in found[first + 1 :]}) == (
        "missing",
        "untried",
    )
    assert "is not a QEMU program" in found[first]["detail"]


def test_a_dead_pid_is_missing_with_its_remedy() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    status, report = doctor("--pid", str(process.pid))
    found = next(check for check in report["checks"] if check["name"] == "process")
    assert (status, found["state"]) == (3, "missing")
    assert "qtrace ps" in found["remedy"]


def test_every_missing_requirement_has_a_remedy_and_no_other_has() -> None:
    _status, report = doctor("--pid", "999999999")
    for check in report["checks"]:
        assert bool(check["remedy"]) == (check["state"] == "missing"), check


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop capabilities: run as root")
def test_a_user_without_capabilities_is_told_to_be_root() -> None:
    # In a child of its own: capabilities that are dropped do not come back.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setresuid(65534, 65534, 65534)
        found = {check.name: (check.state, check.remedy) for check in check_host()}
        os.write(writer, json.dumps(found).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        found = json.load(pipe)
    os.waitpid(child, 0)
    for name in ("CAP_BPF", "CAP_SYS_PTRACE", "BPF system call"):
        state, remedy = found[name]
        assert state == "missing"
        assert "root" in remedy
    assert found["uprobes"][0] == "ok"


def test_the_table_says_the_verdict_and_every_requirement() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "qtrace", "doctor"], cwd=ROOT, capture_output=True, text=True
    )
    assert "eBPF recording can" in run.stdout
    for name in ("bcc", "kernel headers", "uprobes", "gdb with Python", "CAP_SYS_PTRACE"):
        assert name in run.stdout
