"""Where nothing is stuck: whom the monitor serves, which IOThread polls, who is halted."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qtrace.host.descriptors import Descriptors
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.inspection.request_look import Requests
from qtrace.inspection.surroundings import surroundings
from qtrace.lab.block_load import nbd_url
from qtrace.lab.guest import Accelerator, Guest, find_qemu
from qtrace.process.process import Process
from tests.live.support.gdb_cases import everywhere
from tests.live.support.inspecting import inspect
from tests.live.support.other_process import holding, stop
from tests.live.support.ptraced import until
from tests.live.support.serving import client_of, serving
from tests.live.test_check import answer

pytestmark = pytest.mark.qemu
CONNECTS = "s = socket.socket(socket.AF_UNIX); s.connect('{name}'); s.recv(1)"


@contextmanager
def killed(command: list[Any]) -> Iterator[int]:
    """The pid of a program, which is killed at the end."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def told(guest: Guest) -> list[str]:
    looker = Looker(LiveQemu(Process(guest.pid)))
    return list(surroundings(looker, looker.look(), "running", Descriptors(guest.pid)))


def test_a_monitor_that_gives_no_greeting_serves_somebody_else(tmp_path: Path) -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        name = guest.second_qmp_socket.name
        first = holding(CONNECTS.format(name=name), folder=guest.folder)
        with first as pid, socket.socket(socket.AF_UNIX) as second:
            stop(pid)
            until(lambda: not any("has not accepted" in text for text in told(guest)), "its accept")
            second.connect(str(guest.second_qmp_socket))
            found = [text for text in told(guest) if "has not accepted" in text]
    assert len(found) == 1
    assert f"has not accepted process {os.getpid()} (" in found[0]
    assert f", while it serves process {pid} (" in found[0]
    assert found[0].endswith("stopped by a signal (SIGSTOP)")


def test_a_backend_that_waits_for_a_stopped_server_is_told(tmp_path: Path) -> None:
    """Of a vhost-user backend's requests nothing shows in the guest's QEMU."""
    near, far = tmp_path / "near", tmp_path / "far"
    read = [find_qemu().with_name("qemu-io"), "-f", "raw", "-c", "read 0 4k", nbd_url(near)]
    backend = ("-chardev", f"socket,id=backend,path={near}")
    with (
        serving(find_qemu(), far, "null-co,size=1048576,read-zeroes=off") as last,
        serving(find_qemu(), near, client_of(far)) as first,
        Guest(find_qemu(), firmware="idle", extra_args=backend) as guest,
    ):
        stop(last)
        with subprocess.Popen(read, stdout=subprocess.DEVNULL) as client:
            looker = Looker(LiveQemu(Process(guest.pid)))
            requests = Requests(looker)

            def found() -> list[str]:
                descriptors = Descriptors(guest.pid)
                looked = surroundings(looker, looker.look(), "running", descriptors, requests)
                return [text for text in looked if "has in hand" in text]

            until(found, "the read")
            (text,) = found()
            client.kill()
    assert f"unix socket {near}, whose other end is process {first} (qemu-storage-da)" in text
    assert f"whose other end is process {last} (qemu-storage-da), stopped by a signal" in text


@everywhere
def test_a_guest_is_not_cleared_whose_vhost_user_backend_waits_is_stopped_or_gone(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    """Firmware reads its disk's first sector, which the backend asks a stopped server for."""
    near, far = tmp_path / "near", tmp_path / "far"
    guest = [
        qemu_binary, "-accel", accel, "-machine", "q35,memory-backend=m", "-m", "64M",
        "-nodefaults", "-display", "none", "-object", "memory-backend-memfd,id=m,size=64M,share=on",
        "-chardev", f"socket,id=c,path={near}", "-device", "vhost-user-blk-pci,chardev=c",
    ]  # fmt: skip
    program = qemu_binary.with_name("qemu-storage-daemon")
    backend = [
        program, "--blockdev", f"{client_of(far)},node-name=disk",
        "--export", f"vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={near}",
    ]  # fmt: skip
    with (
        serving(qemu_binary, far, "null-co,size=1048576,read-zeroes=off") as last,
        killed(backend) as between,
    ):
        until(near.exists, "the backend")
        stop(last)
        with killed(guest) as pid:
            requests = Requests(Looker(LiveQemu(Process(between))))
            until(lambda: requests.look().causes, "the read")
            waits = inspect("--pid", pid)[:2]
            checked = answer("--pid", pid, "--for", "2s")
            stop(between)
            stopped = inspect("--pid", pid)[:2]
            os.kill(between, signal.SIGKILL)
            until(lambda: not Descriptors(pid).is_connected_by(str(near)), "the connection's end")
            gone = inspect("--pid", pid)[:2]
    backends = []
    for status, document in (waits, checked, stopped):
        assert (status, document["verdict"]) == (4, "inconclusive")
        (reason,) = document["unclear"]
        assert reason.startswith("vhost-user backend: fd ")
        assert f", unix socket {near}, whose other end is process {between} (" in reason
        backends.append(reason)
    assert ", which has in hand: read of 512 bytes at 0 on node disk (nbd): " in backends[0]
    server = f"whose other end is process {last} (qemu-storage-da), stopped by a signal (SIGSTOP)"
    assert server in backends[0]
    assert backends[2].endswith("no request of the guest that it has shows here")
    assert (gone[0], gone[1]["verdict"]) == (4, "inconclusive")
    lost = "vhost-user device vhost-user-blk-pci (chardev c): nobody is connected to its socket "
    assert any(reason.startswith(f"{lost}{near};") for reason in gone[1]["unclear"]), gone[1][
        "unclear"
    ]


@everywhere
def test_processors_that_are_halted_and_loops_that_poll_for_long_are_told(
    qemu_binary: Path, accel: Accelerator
) -> None:
    arguments = ("-object", "iothread,id=io0,poll-max-ns=10000000000", "-object", "iothread,id=io1")
    with Guest(qemu_binary, accel, firmware="idle", extra_args=arguments) as guest:
        until(lambda: any("halted" in text for text in told(guest)), "its halt")
        found = told(guest)
    assert [text for text in found if "polls" in text] == [
        "the loop of `iothread:io0` polls for up to 10 s before it sleeps (poll-max-ns): "
        "that takes a processor"
    ]
    page = ", or for a page of its memory that the host brings" if accel == "kvm" else ""
    halted = f"the guest's vCPU is halted: the guest is idle, or waits for an interrupt{page}"
    assert halted in found


def test_a_job_that_keeps_to_its_speed_limit_is_told(qemu_binary: Path) -> None:
    nodes = [part for name in ("from", "to") for part in ("-blockdev", f"null-co,node-name={name}")]
    with Guest(qemu_binary, firmware="idle", extra_args=nodes) as guest:
        more = {"device": "from", "target": "to", "sync": "full", "speed": 1}
        guest.qmp.command("blockdev-backup", **{"job-id": "slow"} | more)
        shown: list[str] = []

        def is_told() -> bool:
            shown[:] = inspect("--pid", guest.pid)[1]["remarks"]
            return any(text.startswith("job slow runs, with no request") for text in shown)

        until(is_told, "its limit")
