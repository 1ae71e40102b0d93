"""Programs whose main loop has no timer to wait for, idle and well."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qtrace.lab.block_load import disk_image, storage_daemon
from tests.live.support.gdb_session import gdb, live
from tests.live.support.hung import functions_of_main_thread
from tests.live.support.inspecting import inspect
from tests.live.support.ptraced import until

pytestmark = [pytest.mark.qemu, pytest.mark.gdb]


def test_an_idle_storage_daemon_is_not_stuck(qemu_binary: Path, tmp_path: Path) -> None:
    program = qemu_binary.with_name("qemu-storage-daemon")
    with storage_daemon(program, disk_image(tmp_path), "io7") as (pid, _url):
        looks = [inspect("--pid", pid), inspect("--pid", pid, "--gdb")]
        said = gdb(live(pid, program), "aio why", "aio threads")
    for status, document, _err in looks:
        assert (status, document["verdict"], document["unclear"]) == (0, "clear", [])
        assert [c["name"] for c in document["contexts"]][:2] == ["main", "iohandler"]
        assert [t["role"] for t in document["threads"]].count("iothread") == 1
        # It has no BQL: nothing is missing.
        assert (document["missing"], document["bql"]) == ([], {"known": True, "holder": None})
    assert said.startswith("nothing is in the way: nothing is pending")


def test_an_emulator_without_a_timer_is_not_stuck(qemu_binary: Path) -> None:
    command = [qemu_binary, "-M", "none", "-nodefaults", "-display", "none"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: "main_loop_wait" in functions_of_main_thread(process.pid), "its loop")
            status, document, _err = inspect("--pid", process.pid)
        finally:
            process.kill()
    assert (status, document["verdict"]) == (0, "clear")
