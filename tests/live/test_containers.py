"""A QEMU in namespaces of its own, or whose file is not there any more; qtrace is on the host."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from qtrace.lab.guest import Guest, find_qemu
from tests.live.support.attached import attached, save, watched_half
from tests.live.support.counted import counting_calls, own_copy
from tests.live.support.inspecting import context, inspect, thread
from tests.live.support.ptraced import children

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

SAVES = 7
NAMESPACES = "--user --map-root-user --pid --fork --kill-child --net --mount --ipc --uts"


def check_recorded(guest: Guest, pid: int, program: Path) -> None:
    with counting_calls(program, "save_snapshot") as counts, attached(pid) as attach:
        save(guest, SAVES)
        _status, report, _err = attach.end()
    half = watched_half(report)
    assert counts["save_snapshot"] == half["scheduled"] == SAVES
    assert sum(half["verdicts"].values()) == SAVES
    assert set(half["verdicts"]) <= {"main-loop", "vcpu-poll"}


@pytest.mark.skipif(
    subprocess.run(f"unshare {NAMESPACES} true", shell=True, capture_output=True).returncode != 0,
    reason="this kernel, or who runs this, has no namespaces to give",
)
def test_one_in_namespaces_of_its_own_is_recorded_and_looked_into(tmp_path: Path) -> None:
    """Of user, pid, network, mounts, IPC and host name: a container, seen from its host."""
    copy, script = own_copy(find_qemu(), tmp_path), tmp_path / "container"
    script.write_text(f'#!/bin/sh\nexec unshare {NAMESPACES} {copy} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    with Guest(script, firmware="idle") as guest:
        (pid,) = children(guest.pid)
        check_recorded(guest, pid, copy)
        status, document, _err = inspect("--pid", pid)
    assert (status, document["verdict"]) == (0, "clear"), document["unclear"]
    assert context(document, "main")["tid"] == pid
    assert thread(document, pid)["role"] == "main"
    assert "vcpu" in {one["role"] for one in document["threads"]}


@pytest.mark.soak
@pytest.mark.parametrize("replaced", [False, True])
def test_one_whose_file_is_gone_or_another_is_recorded(tmp_path: Path, replaced: bool) -> None:
    """As after an upgrade of its package."""
    copy = own_copy(find_qemu(), tmp_path)
    kept = tmp_path / "kept"
    kept.hardlink_to(copy)
    with Guest(copy, firmware="idle") as guest:
        copy.unlink()
        if replaced:
            copy.write_bytes(Path("/bin/true").read_bytes())
        check_recorded(guest, guest.pid, kept)
        assert inspect("--pid", guest.pid)[0] == 0
