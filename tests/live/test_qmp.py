"""The QMP client against real QEMU programs, and against sockets that are none of theirs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qtrace.errors import QmpFailed
from qtrace.lab.guest import Guest, find_qemu
from qtrace.process.qmp_client import CommandRefused, QmpClient, thread_roles
from qtrace.qemu.aio.mechanics import command_of
from tests.limits import TIMEOUT_S

pytestmark = pytest.mark.qemu

GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""},'
    b' "capabilities": []}}\n'
)


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    arguments = ("-object", "iothread,id=disks", "-smp", "2")
    with Guest(find_qemu(), firmware="idle", extra_args=arguments) as guest:
        yield guest


def connect(path: Path, timeout_s: float = 0.3) -> None:
    with QmpClient(path, timeout_s):
        pass


def test_a_command_returns_its_value(guest: Guest) -> None:
    with QmpClient(guest.second_qmp_socket) as client:
        assert client.command("query-status")["status"] == "running"
        assert client.version[0].isdigit()


def test_each_command_of_a_qemu_is_told_by_its_own_name(qemu_binary: Path) -> None:
    """A stack shows the name of its marshaller, in which every hyphen is an underscore."""
    with Guest(qemu_binary, firmware="idle") as one:
        names = {str(command["name"]) for command in one.qmp.command("query-commands")}
    marshallers = {name: f"qmp_marshal_{name.replace('-', '_')}" for name in names}
    told = {name: command_of([function]) for name, function in marshallers.items()}
    assert {name: text for name, text in told.items() if text != f"QMP {name}"} == {}
    assert "device_add" in names


def test_a_socket_is_free_again_after_closing(guest: Guest) -> None:
    for _ in range(3):
        with QmpClient(guest.second_qmp_socket) as client:
            client.command("query-name")


def test_a_refused_command_tells_the_error_class(guest: Guest) -> None:
    with pytest.raises(CommandRefused) as refused:
        guest.qmp.command("no-such-command")
    assert refused.value.error_class == "CommandNotFound"
    assert "no-such-command" in refused.value.message


def test_events_come_in_order_with_the_commands_that_cause_them(guest: Guest) -> None:
    guest.qmp.command("stop")
    guest.qmp.command("cont")
    stopped = guest.qmp.wait_event("STOP")
    resumed = guest.qmp.wait_event("RESUME")
    assert stopped["timestamp"]["seconds"] <= resumed["timestamp"]["seconds"]


def test_an_event_that_does_not_come_is_a_time_out(guest: Guest) -> None:
    with pytest.raises(QmpFailed, match=r"SHUTDOWN did not come within 0\.05 s"):
        guest.qmp.wait_event("SHUTDOWN", timeout=0.05)
    assert guest.qmp.command("query-status")["running"]


def test_a_socket_held_by_another_client_says_so(guest: Guest) -> None:
    with pytest.raises(QmpFailed, match="another client holds it") as failed:
        connect(guest.qmp_socket)
    assert "second -qmp socket" in failed.value.remedy


def test_a_held_socket_with_a_full_queue_says_so_too(tmp_path: Path) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(str(tmp_path / "qmp"))
        server.listen(0)
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        waiting.connect(str(tmp_path / "qmp"))
        with pytest.raises(QmpFailed, match="another client holds it"):
            connect(tmp_path / "qmp")


def test_a_missing_socket_a_file_and_a_dead_socket_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(QmpFailed, match="No such file"):
        connect(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(QmpFailed, match="is not a socket"):
        connect(tmp_path / "file")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "dead"))
        with pytest.raises(QmpFailed, match="Connection refused"):
            connect(tmp_path / "dead")
    with pytest.raises(QmpFailed, match="too long"):
        connect(tmp_path / ("x" * 120))


@pytest.mark.parametrize(
    "greeting",
    [b"HTTP/1.0 400 Bad Request\r\n\r\n", b'{"hello": 1}\n', b"\xff\xfe\n", b"[]\n", b""],
)
def test_a_socket_that_is_not_qmp_is_refused(tmp_path: Path, greeting: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "other"))
        server.listen()

        def greet() -> None:
            with server.accept()[0] as connection:
                connection.sendall(greeting)

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(QmpFailed, match="is no QMP socket"):
            connect(tmp_path / "other", TIMEOUT_S)
        thread.join()


def test_an_event_in_the_midst_of_the_negotiation_is_no_failure(tmp_path: Path) -> None:
    """As of a guest that panics just then: to qemu.qmp it is a reply that is none."""
    path = tmp_path / "qmp"

    def serve() -> None:
        for reply in (b'{"event": "GUEST_PANICKED", "data": {}}', b'{"return": {}}'):
            connection, _ = server.accept()
            with connection:
                connection.sendall(GREETING)
                connection.recv(4096)
                connection.sendall(reply + b"\n")
                connection.recv(4096)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(2)
        server.settimeout(TIMEOUT_S)
        thread = threading.Thread(target=serve)
        thread.start()
        with QmpClient(path, TIMEOUT_S) as client:
            assert client.version == "10.0.2"
        thread.join()


def test_a_qemu_that_dies_ends_every_wait_at_once() -> None:
    with Guest(find_qemu(), firmware="idle") as guest, QmpClient(guest.second_qmp_socket) as client:
        os.kill(guest.pid, signal.SIGKILL)
        with pytest.raises(QmpFailed, match="connection ended"):
            client.wait_event("SHUTDOWN", timeout=60)
        with pytest.raises(QmpFailed, match="connection ended"):
            client.command("query-status")


def test_threads_have_the_roles_that_qemu_tells(guest: Guest) -> None:
    roles = thread_roles(guest.qmp)
    assert sorted(roles.values()) == [("iothread", "disks"), ("vcpu", "CPU 0"), ("vcpu", "CPU 1")]
    assert set(roles) <= {int(tid) for tid in os.listdir(f"/proc/{guest.pid}/task")}


def test_one_thread_for_all_vcpus_is_named_after_each() -> None:
    arguments = ("-smp", "2", "-accel", "tcg,thread=single")
    with Guest(find_qemu(), firmware="idle", extra_args=arguments) as guest:
        assert list(thread_roles(guest.qmp).values()) == [("vcpu", "CPU 0,1")]


def test_a_storage_daemon_has_no_vcpus_and_that_is_no_error(tmp_path: Path) -> None:
    daemon = find_qemu("qemu-storage-daemon")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "qmp"))
        server.listen()
        chardev = f"socket,id=qmp,fd={server.fileno()},server=on,wait=off"
        process = subprocess.Popen(
            [daemon, "--chardev", chardev, "--monitor", "chardev=qmp",
             "--object", "iothread,id=disks"],
            pass_fds=[server.fileno()],
        )  # fmt: skip
    try:
        with QmpClient(tmp_path / "qmp") as client:
            assert {role for role, _ in thread_roles(client).values()} <= {"iothread"}
    finally:
        process.kill()
        process.wait()
