"""Why a guest does not run though nothing of QEMU's is stuck: each state of QEMU's has words."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from qtrace.lab.guest import Guest, find_qemu
from qtrace.qemu.block.remarks import PAUSED, RUNNING
from tests.live.support.inspecting import inspect
from tests.live.support.ptraced import until
from tests.live.support.writing import open_pipe

pytestmark = pytest.mark.qemu

# gdb's remote protocol: a single step, after which the guest stands still.
STEP = b"$s#73"


def test_each_state_that_qemu_has_is_told(qemu_binary: Path) -> None:
    with Guest(qemu_binary, firmware="idle") as guest:
        schema = {one["name"]: one for one in guest.qmp.command("query-qmp-schema")}
    (status,) = _members(schema, schema["query-status"]["ret-type"], "status")
    states = set(schema[status["type"]]["values"])
    assert RUNNING in states
    assert states - {RUNNING} <= PAUSED.keys()


def _members(schema: dict[str, Any], kind: str, name: str) -> list[dict[str, Any]]:
    return [member for member in schema[kind]["members"] if member["name"] == name]


def test_a_guest_that_a_debugger_stopped_is_told() -> None:
    stub = ("-gdb", "unix:path=stub,server=on,wait=off")
    with (
        Guest(find_qemu(), extra_args=stub) as guest,
        socket.socket(socket.AF_UNIX) as debugger,
    ):
        debugger.connect(str(guest.folder / "stub"))
        debugger.sendall(STEP)
        until(lambda: guest.qmp.command("query-status")["status"] == "debug", "its stop")
        status, document, _err = inspect("--pid", guest.pid)
    assert (status, document["verdict"]) == (0, "clear")
    assert document["remarks"] == [PAUSED["debug"]]


def test_a_guest_whose_memory_is_dumped_is_told_with_whoever_does_not_take_it(
    tmp_path: Path,
) -> None:
    """QEMU stops it as for a snapshot, and dumps in a thread of its own."""
    pipe = tmp_path / "dump"
    end = open_pipe(pipe)
    with Guest(find_qemu(), firmware="idle") as guest:
        dump = {"paging": False, "detach": True, "protocol": f"file:{pipe}"}
        guest.qmp.command("dump-guest-memory", **dump)
        until(lambda: writes_to_pipe(guest.pid), "a full pipe")
        status, document, _err = inspect("--pid", guest.pid)
    os.close(end)
    assert (status, document["verdict"]) == (0, "clear")
    (told,) = [remark for remark in document["remarks"] if remark.startswith("the guest is")]
    assert told.startswith(f"{PAUSED['save-vm']}: ")
    assert " (dump_thread) waits in " in told
    assert f"pipe {pipe}, whose read end is held by process {os.getpid()} (" in told


def writes_to_pipe(pid: int) -> bool:
    """Whether a thread waits until somebody takes what it writes."""
    channels = [task / "wchan" for task in Path(f"/proc/{pid}/task").iterdir()]
    return any("pipe_write" in channel.read_text() for channel in channels)
