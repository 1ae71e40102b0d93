"""What a thread that sleeps waits for outside of QEMU: a file, and the process behind it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from qtrace.lab.guest import Accelerator, Guest, find_qemu
from tests.live.support.dead_fuse import guest_on
from tests.live.support.gdb_cases import everywhere
from tests.live.support.hung import functions_of_main_thread
from tests.live.support.inspecting import in_words, inspect, thread
from tests.live.support.other_process import holding, stop
from tests.live.support.ptraced import until

pytestmark = pytest.mark.qemu
LISTENS = "s = socket.socket(socket.AF_UNIX); s.bind('full'); s.listen(0)\n" \
          "c = socket.socket(socket.AF_UNIX); c.connect('full')"  # fmt: skip


@pytest.mark.fuse
@everywhere
def test_an_open_on_a_dead_file_system_leads_to_whoever_serves_it(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    with guest_on(qemu_binary, accel, tmp_path) as (guest, file):
        file.put_to_sleep(guest, "main")
        until(lambda: "qmp_blockdev_add" in functions_of_main_thread(guest.pid), "the hang")
        status, document, _err = inspect("--pid", guest.pid)
        server = file.pid
    (finding,) = document["findings"]
    assert (status, finding["verdict"]) == (1, "stuck")
    assert f"{file.path}, on fuse" in finding["sentence"]
    served = f"served by process {server} (qemu-storage-da), stopped by a signal (SIGSTOP)"
    assert served in finding["sentence"]
    assert served in thread(document, guest.pid)["waits_outside"]
    assert thread(document, guest.pid)["asleep_ns"] > 0


def test_a_connect_leads_to_whoever_accepts_nobody(tmp_path: Path) -> None:
    address = {"type": "unix", "data": {"path": str(tmp_path / "full")}}
    backend = {"type": "socket", "data": {"server": False, "addr": address}}
    ask = {"execute": "chardev-add", "arguments": {"id": "c", "backend": backend}}
    with (
        holding(LISTENS, folder=tmp_path) as pid,
        Guest(find_qemu(), firmware="idle") as guest,
        socket.socket(socket.AF_UNIX) as qmp,
    ):
        stop(pid)
        qmp.connect(str(guest.second_qmp_socket))
        qmp.sendall(b'{"execute":"qmp_capabilities"}' + json.dumps(ask).encode())
        until(lambda: "qmp_chardev_add" in functions_of_main_thread(guest.pid), "the hang")
        status, document, _err = inspect("--pid", guest.pid)
    (finding,) = document["findings"]
    assert status == 1
    assert "/full, where it waits behind 1 client to be accepted by" in finding["sentence"]
    assert f"process {pid} (" in finding["sentence"]
    assert "stopped by a signal (SIGSTOP)" in finding["sentence"]


def test_an_open_of_a_pipe_that_nobody_has_is_told_and_its_name_is_inert() -> None:
    with Guest(find_qemu(), firmware="idle") as guest, socket.socket(socket.AF_UNIX) as qmp:
        pipe = guest.folder / "p\x1b[31m\n"
        os.mkfifo(pipe)
        backend = {"type": "file", "data": {"out": pipe.name}}
        ask = {"execute": "chardev-add", "arguments": {"id": "c", "backend": backend}}
        qmp.connect(str(guest.second_qmp_socket))
        qmp.sendall(b'{"execute":"qmp_capabilities"}' + json.dumps(ask).encode())
        until(lambda: "qmp_chardev_add" in functions_of_main_thread(guest.pid), "the hang")
        status, document, _err = inspect("--pid", guest.pid)
        shown = in_words("--pid", guest.pid)
    (finding,) = document["findings"]
    assert status == 1
    said = "of pipe p\\x1b[31m\\x0a, whose other end nobody has open"
    assert said in finding["sentence"]
    assert said in " ".join(shown.split())
    assert "\x1b" not in shown


def test_a_device_that_is_being_made_is_told_and_no_other_one(qemu_binary: Path) -> None:
    """At its start QEMU has made other ones before; it has no main loop and no QMP yet."""
    with socket.socket(socket.AF_UNIX) as silent, tempfile.TemporaryDirectory() as folder:
        silent.bind(f"{folder}/backend")
        silent.listen(1)
        memory = "memory-backend-memfd,id=m,size=64M,share=on"
        command = [
            qemu_binary, "-S", "-machine", "q35,memory-backend=m", "-m", "64M", "-nodefaults",
            "-display", "none", "-object", memory,
            "-chardev", f"socket,id=c,path={folder}/backend",
            "-device", "vhost-user-fs-pci,chardev=c,tag=x",
        ]  # fmt: skip
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
            try:
                _client, _address = silent.accept()
                until(lambda: "vhost_dev_init" in functions_of_main_thread(process.pid), "the hang")
                status, document, _err = inspect("--pid", process.pid)
            finally:
                process.kill()
    (finding,) = document["findings"]
    assert (status, finding["verdict"]) == (1, "stuck")
    assert ", for device vhost-user-fs-device, on fd " in finding["sentence"]
    assert f", whose other end is process {os.getpid()} (" in finding["sentence"]


@everywhere
def test_who_polls_for_a_connection_is_told_with_the_thread_that_makes_it(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    """An NBD server that never greets: a thread waits for it, and main in a nested poll."""
    server = {"type": "unix", "path": str(tmp_path / "s")}
    ask = {"driver": "nbd", "node-name": "x", "server": server}
    code = "s = socket.socket(socket.AF_UNIX); s.bind('s'); s.listen(1)"
    with (
        holding(code, folder=tmp_path) as pid,
        Guest(qemu_binary, accel, firmware="idle") as guest,
        socket.socket(socket.AF_UNIX) as qmp,
    ):
        stop(pid)
        qmp.connect(str(guest.second_qmp_socket))
        add = json.dumps({"execute": "blockdev-add", "arguments": ask})
        qmp.sendall(b'{"execute":"qmp_capabilities"}' + add.encode())
        until(lambda: "qmp_blockdev_add" in functions_of_main_thread(guest.pid), "the hang")
        status, document, _err = inspect("--pid", guest.pid)
    finding = next(f for f in document["findings"] if f["verdict"] == "stuck")
    assert status == 1
    assert "; meanwhile " in finding["sentence"]
    assert f"unix socket s, which is not accepted yet by process {pid} (" in finding["sentence"]


def test_a_program_without_a_loop_that_waits_for_a_connection_is_never_clear(
    qemu_binary: Path, tmp_path: Path
) -> None:
    code = "s = socket.socket(socket.AF_UNIX); s.bind('s'); s.listen(1)"
    command = [qemu_binary.with_name("qemu-img"), "info", f"nbd+unix:///?socket={tmp_path}/s"]
    with holding(code, folder=tmp_path) as pid:
        stop(pid)
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
            try:
                until(lambda: inspect("--pid", process.pid)[0] == 4, "half a second")
                status, document, _err = inspect("--pid", process.pid)
            finally:
                process.kill()
    assert (status, document["verdict"], document["findings"]) == (4, "inconclusive", [])
    (reason,) = document["unclear"]
    assert " waits in nbd_do_establish_connection" in reason
    assert "polling `main`, while for at least " in reason
    assert f"unix socket s, which is not accepted yet by process {pid} (" in reason
    assert reason.endswith("stopped by a signal (SIGSTOP)")
