"""A stock QEMU whose main thread sleeps in open(2) with a bottom half left behind.

Each human monitor can make the main thread open a FIFO that nobody reads. Within one turn of
the main loop the iohandler context is dispatched before the monitors: a newline that waits
in a monitor's socket stops the main thread right after the QMP machinery's next step.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.lab.guest import Accelerator, Firmware, Guest
from qtrace.process.process import Process
from tests.limits import TIMEOUT_S
from tests.live.support.hung import TCG, functions_of_main_thread

SAVE = "snapshot_save_job_bh"
MONITORS = 3
COMMAND = {
    "execute": "snapshot-save",
    "arguments": {"job-id": "save", "tag": "t", "vmstate": "nosuch", "devices": ["nosuch"]},
}


@contextmanager
def guest_with_monitors(
    qemu: Path,
    accel: Accelerator,
    firmware: Firmware = "idle",
    *,
    kind: type[Guest] = Guest,
    extra_args: Sequence[str] = (),
) -> Iterator[Guest]:
    """A guest with human monitors; ``save_left_behind`` works on an idle one."""
    arguments = [*(TCG if accel == "tcg" else ()), *extra_args]
    for number in range(MONITORS):
        socket_name = f"socket,id=hmp{number},path=hmp{number},server=on,wait=off"
        arguments += ["-chardev", socket_name, "-mon", f"chardev=hmp{number},mode=readline"]
    with kind(qemu, accel, firmware=firmware, extra_args=arguments) as guest:
        yield guest


@contextmanager
def save_left_behind(guest: Guest) -> Iterator[Callable[[], None]]:
    """``snapshot_save_job_bh`` is pending in ``main`` while the main thread sleeps in open(2).

    Yields what lets the main thread go on.
    """
    with ExitStack() as stack:
        monitors = [stack.enter_context(Monitor(guest, number)) for number in range(MONITORS)]
        qmp = stack.enter_context(_connected(guest.second_qmp_socket))
        for monitor in monitors:
            monitor.type_command()
        monitors[0].enter()
        monitors[0].wait_asleep()
        qmp.sendall(json.dumps(COMMAND).encode())
        _wait(lambda: "co_schedule_bh_cb" in pending(guest.pid), "the QMP command")
        for before, after in itertools.pairwise(monitors):
            after.enter()
            before.release()
            after.wait_asleep()
        assert SAVE in pending(guest.pid)
        yield monitors[-1].release


def pending(pid: int) -> list[str]:
    """The names of what is pending in any context."""
    return [half.name for half in Looker(LiveQemu(Process(pid))).look().bottom_halves]


def _connected(path: Path) -> socket.socket:
    """A QMP connection that is ready for commands."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(TIMEOUT_S)
    connection.connect(str(path))
    connection.sendall(b'{"execute": "qmp_capabilities"}')
    said = b""
    while b'"return"' not in said:
        said += connection.recv(4096)
    return connection


class Monitor:
    """A human monitor and its FIFO."""

    def __init__(self, guest: Guest, number: int) -> None:
        self._pid = guest.pid
        self._number = number
        self._fifo = guest.folder / f"fifo{number}"
        os.mkfifo(self._fifo)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT_S)
        self._socket.connect(str(guest.folder / f"hmp{number}"))
        self._reader = -1
        self._count = itertools.count()

    def __enter__(self) -> Monitor:
        self.read_prompt()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._socket.close()
        self.close_fifo()

    def type_command(self, command: bytes = b"") -> None:
        """All but the newline, until the monitor has echoed it; by default opening the FIFO."""
        name = f"c{self._number}-{next(self._count)}"
        command = command or f"chardev-add file,id={name},path={self._fifo.name}".encode()
        self._socket.sendall(command)
        self._read_until(command[-5:])

    def enter(self) -> None:
        self._socket.sendall(b"\n")

    def wait_asleep(self) -> None:
        asleep = f"the sleep in open() of {self._fifo.name}"
        _wait(lambda: "qmp_chardev_open_file_source" in functions_of_main_thread(self._pid), asleep)

    def release(self) -> None:
        """Somebody reads the FIFO: open(2) returns, and the command ends."""
        self.open_fifo()
        self.read_prompt()

    def open_fifo(self) -> None:
        self._reader = os.open(self._fifo, os.O_RDONLY | os.O_NONBLOCK)

    def close_fifo(self) -> None:
        if self._reader >= 0:
            os.close(self._reader)
        self._reader = -1

    def read_prompt(self) -> None:
        self._read_until(b"(qemu) ")

    def _read_until(self, text: bytes) -> None:
        said = b""
        while text not in said:
            piece = self._socket.recv(4096)
            assert piece, said
            said += piece


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.01)
