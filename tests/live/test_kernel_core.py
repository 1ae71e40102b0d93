"""Core files as the kernel writes them: of a hung QEMU that somebody aborts, and of a crash."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtrace.lab.guest import Accelerator, find_qemu
from tests.conftest import version
from tests.live.gdb_cases import STRANDED, everywhere
from tests.live.gdb_session import core as target_of
from tests.live.gdb_session import gdb
from tests.live.hung import hung_guest
from tests.live.inspecting import check_hung, inspect, thread

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
    with kernel_cores() as folder, hung_guest(qemu_binary, accel) as guest:
        resource.prlimit(guest.pid, resource.RLIMIT_CORE, ANY_SIZE)
        os.kill(guest.pid, signal.SIGABRT)
        os.waitid(os.P_PID, guest.pid, os.WEXITED | os.WNOWAIT)
        core = folder / f"core.{guest.pid}"
        status, document, _err = inspect("--core", core)
        said = gdb(target_of(guest.pid, qemu_binary, core), f"aio why {STRANDED}", "aio jobs")
        check_cut_off(core, qemu_binary, guest.pid)
    assert status == 4
    assert document["verdict"] == "stranded"
    check_hung(document, guest.pid)
    ending = document["ending"]
    assert (ending["signal"], ending["sent_by_pid"]) == ("SIGABRT", os.getpid())
    assert {t["tid"] for t in document["threads"] if t["kernel"]}.isdisjoint({guest.pid})
    finding = next(f for f in document["findings"] if f["verdict"] == "stranded")
    assert finding["sentence"].partition(" (main)")[0] in said
    assert "bk  backup  running  coroutine 0x" in said


def check_cut_off(core: Path, qemu: Path, pid: int) -> None:
    """Of a core whose end was not written, what is there is shown, and it is said what is not."""
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
@pytest.mark.timeout(180)
def test_the_crash_of_a_save_on_a_vcpu_thread_is_explained_by_its_core() -> None:
    """QEMU issue 2111 before 8.2: without the BQL the save's first write fails an assertion."""
    qemu = find_qemu()
    if version(str(qemu)) != "7.2":
        pytest.skip("newer QEMUs keep the BQL in a save (930e239d11): they do not crash")
    with kernel_cores() as folder:
        subprocess.run(
            [sys.executable, "-m", "qtrace", "lab", "crash", "--qemu", qemu],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, ANY_SIZE),
            check=True, capture_output=True, timeout=150,
        )  # fmt: skip
        (core,) = folder.iterdir()
        status, document, _err = inspect("--core", core)
        said = gdb(target_of(0, qemu, core), "aio why")
    assert (status, document["verdict"]) == (1, "crashed")
    (finding,) = document["findings"]
    tid = document["ending"]["tid"]
    assert (finding["tid"], finding["role"], finding["polls"]) == (tid, "vcpu", "main")
    assert finding["waits_in"][0] == "bdrv_writev_vmstate"
    assert finding["waits_in"][-1] == "save_snapshot"
    ran = "save_snapshot, a bottom half that it ran inside aio_poll() of `main`, called by blk_"
    assert ran in finding["sentence"]
    assert "without the BQL; " in finding["sentence"]
    assert "bdrv_poll_co: Assertion" in document["ending"]["message"]
    assert document["ending"]["sent_by_pid"] is None
    assert thread(document, tid)["blocked_in"] is None
    assert f"SIGABRT ended it in {tid} (vcpu): bdrv_writev_vmstate < " in said
    assert ran in said


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
