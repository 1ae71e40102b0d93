"""``qtrace check`` and ``qtrace autopsy`` in large counts.

Sound guests are accused of nothing, each kind of hang is found by both, and of a crowd of QEMUs
each has its line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from qtrace.lab.guest import Accelerator, Guest, find_qemu
from qtrace.qemu.aio.findings import COMPUTES
from tests.live.support.counted import own_copy
from tests.live.support.dead_fuse import guest_on, locked_memory_map
from tests.live.support.hung import functions_of_main_thread
from tests.live.support.other_process import stop
from tests.live.support.ptraced import until
from tests.live.support.stirring import sound_guest
from tests.live.test_capabilities import for_anybody
from tests.live.test_privilege import NOBODY
from tests.live.test_request_stuck import ask, guest_on_server
from tests.live.test_soak_hung import HANGS, drains, is_kept_off, opens, pauses

# On a busy machine a check may take half a minute to start.
pytestmark = [pytest.mark.qemu, pytest.mark.soak, pytest.mark.timeout(3600)]

# Each sleeps most of the time.
CHECKS, AT_ONCE = 50, 4
QEMUS = 50
# The 50 QEMUs of a host take seven rounds, of which the locked one's may take 20 s longer.
TIMEOUT_S = 300
EMPTY = ("-S", "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none")


def qtrace(*words: object, user: tuple[str, ...] = ()) -> tuple[int, dict[str, Any], float]:
    """The exit status of a command, its JSON, and how long it took."""
    command = [sys.executable, "-m", "qtrace", *map(str, words), "--format", "json"]
    began = time.monotonic()
    run = subprocess.run(
        [*user, *for_anybody(command)] if user else command,
        text=True, capture_output=True, timeout=TIMEOUT_S,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    took_s = time.monotonic() - began
    assert "Traceback" not in run.stderr, run.stderr
    assert run.stdout, run.stderr
    return run.returncode, json.loads(run.stdout), took_s


@pytest.mark.bpf
@pytest.mark.parametrize("state", ["idle", "pflash", "boots", "migrates"])
def test_50_checks_of_a_sound_guest_accuse_nobody(
    qemu_binary: Path, accel: Accelerator, state: str, soak_row: Callable[..., None]
) -> None:
    with (
        sound_guest(qemu_binary, accel, state) as guest,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        pid = guest.pid
        answers = list(pool.map(lambda _: qtrace("check", "--pid", pid), range(CHECKS)))
    said: Counter[str] = Counter()
    for status, document, _took_s in answers:
        wrong = [one for one in document["findings"] if one["verdict"] != COMPUTES]
        wrong += document["noted"]
        assert wrong == [], [one["sentence"] for one in wrong]
        # No probe is set in a program while the memory map of any process of it is locked, as
        # another test's may be.
        assert all("memory map locked" in what for what in document["unseen"])
        said["without a recording"] += bool(document["unseen"])
        assert status == (0 if document["verdict"] == "healthy" else 4)
        said[document["verdict"]] += 1
    others = "".join(f", {n} {what}" for what, n in said.items() if n and what != "healthy")
    longest_s = max(took_s for _status, _document, took_s in answers)
    soak_row(
        f"{CHECKS} checks of a sound guest, {AT_ONCE} at once",
        f"0 findings, {said['healthy']} healthy{others}; at most {longest_s:.1f} s",
    )


@contextmanager
def waits_for_a_server(qemu: Path, _accel: Accelerator, folder: Path) -> Iterator[int]:
    with guest_on_server(qemu, folder) as (guest, server):
        stop(server)
        ask(guest, "aio_write 4k 512")
        yield guest.pid
        os.kill(server, signal.SIGCONT)


@contextmanager
def opens_a_dead_file(qemu: Path, accel: Accelerator, folder: Path) -> Iterator[int]:
    with guest_on(qemu, accel, folder) as (guest, file):
        file.put_to_sleep(guest, "main")
        until(lambda: "qmp_blockdev_add" in functions_of_main_thread(guest.pid), "the hang")
        yield guest.pid


# What each is, with what its sentence has of the cause; the last ones name whoever is at fault.
KINDS = {
    drains: HANGS[drains],
    opens: HANGS[opens],
    pauses: HANGS[pauses],
    is_kept_off: HANGS[is_kept_off],
    waits_for_a_server: "(qemu-storage-da), stopped by a signal (SIGSTOP)",
    opens_a_dead_file: "(qemu-storage-da), stopped by a signal (SIGSTOP)",
}


@pytest.mark.fuse
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_check_and_autopsy_of_a_hung_guest_say_the_cause(
    qemu_binary: Path,
    accel: Accelerator,
    kind: Callable[..., Any],
    tmp_path: Path,
    soak_row: Callable[..., None],
) -> None:
    path = tmp_path / "hung.autopsy"
    with kind(qemu_binary, accel, tmp_path) as pid:
        checked = qtrace("check", "--pid", pid)
        taken = qtrace("autopsy", "--pid", pid, "-o", path)
    read = qtrace("inspect", "--autopsy", path)
    assert taken[0] == 0
    for status, document, _took_s in (checked, read):
        assert status == 1
        first = document["findings"][0]
        assert KINDS[kind] in first["sentence"]
        assert first["proof"]
    assert checked[1]["next"].startswith(f"qtrace autopsy --pid {pid} ")
    soak_row(
        "check, and autopsy, of a hung guest",
        "status 1 and the cause by both",
        f"{checked[2]:.1f} s, and {taken[2]:.1f} s and {taken[1]['bytes'] / 1e6:.1f} MB",
    )


@contextmanager
def of_nobody() -> Iterator[int]:
    """A QEMU whose user may look at no other."""
    command = [*NOBODY, find_qemu(), *EMPTY]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            exe = f"/proc/{process.pid}/exe"
            until(lambda: "qemu" in os.readlink(exe), "its start")
            yield process.pid
        finally:
            process.kill()


@pytest.mark.fuse
def test_of_50_qemus_each_has_its_line_and_a_locked_one_keeps_no_other_waiting(
    tmp_path: Path, soak_row: Callable[..., None]
) -> None:
    with ExitStack() as stack:
        others = [
            stack.enter_context(Guest(find_qemu(), firmware="idle")).pid for _ in range(QEMUS - 2)
        ]
        own = stack.enter_context(of_nobody())
        # Of a file of its own: whoever set a uprobe in the others' would wait for it, and with
        # him all who want to start a process on this host.
        copy = own_copy(find_qemu(), tmp_path)
        guest, _file = stack.enter_context(locked_memory_map(copy, tmp_path))
        os.kill(others[0], signal.SIGSTOP)
        status, document, took_s = qtrace("check", "--host")
        of_user = qtrace("check", "--host", "--for", "1s", user=NOBODY)
    found = {one["target"]["pid"]: one for one in document["qemus"]}
    ours = {*others, own, guest.pid}
    # Others may test here, too.
    of_others = {one["verdict"] for pid, one in found.items() if pid not in ours}
    assert status == (4 if of_others <= {"healthy", "inconclusive", COMPUTES} else 1)
    assert "stopped by" in found[others[0]]["unclear"][0]
    assert "the kernel lets nobody read" in found[guest.pid]["error"]
    assert {found[pid]["verdict"] for pid in (*others[1:], own)} == {"healthy"}
    soak_row(
        f"check --host, {QEMUS} QEMUs, one of them locked",
        f"{len(document['qemus'])} lines in {took_s:.1f} s",
    )
    seen = {one["target"]["pid"]: one for one in of_user[1]["qemus"]}
    assert of_user[0] == 4
    assert seen[own]["verdict"] == "healthy"
    assert all("run qtrace as root" in seen[pid]["error"] for pid in others)
