"""Core files as the kernel writes them: of a hung QEMU that somebody aborts, and of a crash."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.host.cache import cache_folder
from qtrace.lab.guest import Accelerator, Guest, find_qemu
from qtrace.sites.scan_cache import scan_module
from tests.conftest import version
from tests.limits import TIMEOUT_S
from tests.live.support.gdb_cases import STRANDED, everywhere, once
from tests.live.support.gdb_session import core as target_of
from tests.live.support.gdb_session import gdb
from tests.live.support.hung import hung_guest
from tests.live.support.inspecting import check_hung, inspect, thread

PATTERN = Path("/proc/sys/kernel/core_pattern")
ANY_SIZE = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(not os.access(PATTERN, os.W_OK), reason="core_pattern is root's"),
]


@pytest.mark.gdb
@everywhere
def test_a_hung_qemu_that_is_aborted_is_explained_by_its_core(
    qemu_binary: Path, accel: Accelerator
) -> None:
    with aborted(qemu_binary, accel) as (guest, core):
        status, document, _err = inspect("--core", core)
        said = gdb(target_of(guest.pid, qemu_binary, core), f"aio why {STRANDED}", "aio jobs")
    assert status == 4
    assert document["verdict"] == "stuck"
    check_hung(document, guest.pid)
    ending = document["ending"]
    assert (ending["signal"], ending["sent_by_pid"]) == ("SIGABRT", os.getpid())
    assert {t["tid"] for t in document["threads"] if t["kernel"]}.isdisjoint({guest.pid})
    finding = next(f for f in document["findings"] if f["verdict"] == "stuck")
    assert f"{STRANDED} is stranded in `iohandler`: the only thread" in said
    assert f"{guest.pid} (main) waits in bdrv_drain" in finding["sentence"]
    assert "bk  backup  running  coroutine 0x" in said


@pytest.mark.gdb
@once
def test_of_a_core_whose_end_was_not_written_it_is_said_what_is_not_there(
    qemu_binary: Path, accel: Accelerator
) -> None:
    """What is there is shown."""
    with aborted(qemu_binary, accel) as (guest, core):
        check_cut_off(core, qemu_binary, guest.pid)


def check_cut_off(core: Path, qemu: Path, pid: int) -> None:
    size = core.stat().st_size
    for percent in (90, 75, 50, 25, 2):
        os.truncate(core, size * percent // 100)
        status, document, err = inspect("--core", core)
        # The main thread's stack lies at the end.
        assert (status, document["verdict"], document["findings"]) == (4, "inconclusive", [])
        assert f"the stack of {pid} (main) breaks off" in document["unclear"]
        assert "is truncated: " in err
        said = gdb(target_of(pid, qemu, core), "aio why", "aio threads", "aio bh", "aio contexts")
        assert "it cannot be told whether anything is in the way:\n" in said
        assert f"  the stack of {pid} (main) breaks off\n" in said
        shown = [STRANDED in said, "this core does not have AioContexts: it is damaged" in said]
        assert shown == [percent > 2, percent == 2]
    os.truncate(core, 4096)
    status, _document, err = inspect("--core", core)
    assert status == 3
    assert "is truncated before what tells its threads (4096 bytes are here)" in err


@pytest.mark.gdb
def test_the_crash_of_a_save_on_a_vcpu_thread_is_explained_by_its_core(tmp_path: Path) -> None:
    """QEMU issue 2111 before 8.2: without the BQL the save's first write fails an assertion."""
    qemu = find_qemu()
    if version(str(qemu)) != "7.2":
        pytest.skip("newer QEMUs keep the BQL in a save (930e239d11): they do not crash")
    with kernel_cores() as folder:
        subprocess.run(
            [sys.executable, "-m", "qtrace", "lab", "crash", "--qemu", qemu],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, ANY_SIZE),
            check=True, capture_output=True, timeout=2 * TIMEOUT_S,
        )  # fmt: skip
        (core,) = folder.iterdir()
        status, document, _err = inspect("--core", core)
        target = target_of(0, qemu, core)
        said = gdb(target, "aio why")
        named = gdb(target, "aio why", cache=cache_folder().parent)
        other = gdb(target, "aio why", cache=_cache_of_other_code(qemu, tmp_path))
    assert (status, document["verdict"]) == (1, "crashed")
    (finding,) = document["findings"]
    tid = document["ending"]["tid"]
    assert (finding["tid"], finding["role"], finding["polls"]) == (tid, "vcpu", "main")
    assert finding["waits_in"][0] == "bdrv_writev_vmstate"
    assert finding["waits_in"][-1] == "save_snapshot"
    ran = "a bottom half that it ran inside aio_poll() of `main`, called by blk_"
    assert f"save_snapshot, in snapshot_save_job_bh, {ran}" in finding["sentence"]
    assert "without the BQL; " in finding["sentence"]
    assert "bdrv_poll_co: Assertion" in document["ending"]["message"]
    assert document["ending"]["sent_by_pid"] is None
    assert thread(document, tid)["blocked_in"] is None
    assert f"SIGABRT ended it in {tid} (vcpu): bdrv_writev_vmstate < " in said
    # gdb names it where this very code was scanned.
    assert f"save_snapshot, in snapshot_save_job_bh, {ran}" in named
    assert f"save_snapshot, {ran}" in said
    assert other == said


def _cache_of_other_code(qemu: Path, folder: Path) -> Path:
    """A scan that bears this QEMU's build id, and has one instruction that it has not."""
    scan = scan_module(Module(Elf(qemu), 0))
    first, *rest = scan.bottom_halves
    site = replace(first.sites[0], code="90" * (len(first.sites[0].code) // 2))
    halves = (replace(first, sites=(site, *first.sites[1:])), *rest)
    (folder / "qtrace").mkdir()
    file = folder / "qtrace" / f"scan-v9-{scan.build_id}-{scan.code_hash}.json"
    file.write_text(json.dumps(replace(scan, bottom_halves=halves).to_json()))
    return folder


@contextmanager
def aborted(qemu: Path, accel: Accelerator) -> Iterator[tuple[Guest, Path]]:
    """A hung QEMU that somebody has aborted, and its core."""
    with kernel_cores() as folder, hung_guest(qemu, accel) as guest:
        resource.prlimit(guest.pid, resource.RLIMIT_CORE, ANY_SIZE)
        os.kill(guest.pid, signal.SIGABRT)
        os.waitid(os.P_PID, guest.pid, os.WEXITED | os.WNOWAIT)
        yield guest, folder / f"core.{guest.pid}"


@contextmanager
def kernel_cores() -> Iterator[Path]:
    """The folder into which the kernel writes cores meanwhile, of those whose limit allows it."""
    # Not tmp_path: pytest keeps that, and cores are large.
    with (
        tempfile.TemporaryDirectory(prefix="qtrace-core-") as folder,
        PATTERN.open("r+") as setting,
    ):
        fcntl.flock(setting, fcntl.LOCK_EX)
        before = PATTERN.read_text()
        PATTERN.write_text(f"{folder}/core.%p\n")
        try:
            yield Path(folder)
        finally:
            PATTERN.write_text(before)
