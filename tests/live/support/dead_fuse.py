"""A file whose file system answers no more: qemu-storage-daemon serves it by FUSE, and is stopped.

Whoever touches the file then sleeps in the kernel: interruptibly at first, and uninterruptibly as
soon as anybody wants it to stop (request_wait_answer() in fs/fuse/dev.c); where it waits for a
page, it does so from the beginning (folio_wait_bit_common()).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import pytest

from qtrace.lab.guest import Accelerator, Firmware, Guest, find_qemu
from tests.live.support.ptraced import until

Sleeper = Literal["worker", "main", "iothread"]
# One shows it; the others are for the large counts.
SLEEPERS = ["worker", *(pytest.param(s, marks=pytest.mark.soak) for s in ("main", "iothread"))]
# Two nodes on the one file: a worker thread reads the one, an IOThread exports the other.
READ, EXPORTED, OPENED = "read", "exported", "opened"
IOTHREAD, SERVER = "iot0", "nbd"
FILE_BYTES, PART = 1 << 20, 1 << 16
# mmap, mprotect, munmap, brk, mremap.
MAP_CALLS, MUCH = frozenset({"9", "10", "11", "12", "25"}), 1 << 20
# QEMU reads its monitor byte by byte.
READING_S = 80.0
# The kernel functions that a thread sleeps in which waits for an answer.
CHANNELS = ("request_wait_answer", "folio_wait_bit_common", "fuse_")


class DeadFile:
    """``path`` lies on FUSE; ``freeze`` stops whoever serves it, ``thaw`` lets it go on."""

    def __init__(self, path: Path, daemon: subprocess.Popen[bytes]) -> None:
        self.path = path
        self._daemon = daemon
        self._clients: list[subprocess.Popen[bytes]] = []
        self._monitor = socket.socket(socket.AF_UNIX)

    @property
    def pid(self) -> int:
        """Of whoever serves it."""
        return self._daemon.pid

    def freeze(self) -> None:
        os.kill(self._daemon.pid, signal.SIGSTOP)
        until(lambda: _state(self._daemon.pid) == "T", "the daemon's stop")

    def thaw(self) -> None:
        """Everything goes on."""
        os.kill(self._daemon.pid, signal.SIGCONT)

    def put_to_sleep(self, guest: Guest, sleeper: Sleeper) -> int:
        """Freeze the file system, and let a thread of QEMU's wait for it. Returns its tid.

        ``worker`` reads a page, and ``iothread`` asks where data lies, while all others go on;
        ``main`` opens the file with the BQL, so that the guest soon stands still.
        """
        if sleeper == "worker":
            self._put_worker_to_sleep(guest)
            return self._asleep(guest)
        self.freeze()
        if sleeper == "main":
            options = {"driver": "file", "node-name": OPENED, "locking": "off"}
            self.ask(guest, "blockdev-add", **options, filename=str(self.path))
        else:
            self._clients.append(_client(guest))
        tid = self._asleep(guest)
        for client in self._clients:
            # QEMU 7.2 does not outlive the end of a client whose export is an IOThread's.
            client.send_signal(signal.SIGSTOP)
        return tid

    def _put_worker_to_sleep(self, guest: Guest) -> None:
        """While the guest asks for nothing: a pool's one idle worker counts as idle until it runs,
        so that what is asked for before that would wait behind the read for ever
        (thread_pool_submit_aio() in util/thread-pool.c)."""
        guest.qmp.command("stop")
        self.freeze()
        # No drain afterwards, as the name is a backend's and not a node's.
        line = f'qemu-io {READ} "aio_read 0 4096"'
        guest.qmp.command("human-monitor-command", **{"command-line": line})
        self._asleep(guest)
        guest.qmp.command("cont")

    @staticmethod
    def _asleep(guest: Guest) -> int:
        until(lambda: threads_in_fuse(guest.pid), "the wait for the file system")
        (tid,) = threads_in_fuse(guest.pid)
        return tid

    def ask(self, guest: Guest, command: str, **arguments: object) -> None:
        """A QMP command whose answer nobody waits for."""
        self._monitor.connect(str(guest.second_qmp_socket))
        message = json.dumps({"execute": command, "arguments": arguments})
        self._monitor.sendall(b'{"execute": "qmp_capabilities"}' + message.encode())

    def close(self) -> None:
        """After the guest. Whoever still waits for an answer gets an error."""
        self._monitor.close()
        for process in (*self._clients, self._daemon):
            process.kill()
            process.communicate()


@contextmanager
def fuse_file(folder: Path, size: int = FILE_BYTES) -> Iterator[DeadFile]:
    """A file that the host's qemu-storage-daemon exports: one in another root would mount it where
    nobody else sees it."""
    folder.mkdir(parents=True, exist_ok=True)
    image, path = folder / "image", folder / "fuse.raw"
    image.write_bytes((b"\1" * PART + bytes(PART)) * (FILE_BYTES // PART // 2))
    os.truncate(image, size)
    path.touch()
    daemon = subprocess.Popen(
        [_beside(find_qemu(), "qemu-storage-daemon"),
         "--blockdev", f"driver=file,filename={image},node-name=b",
         "--export", f"fuse,id=f,node-name=b,mountpoint={path},writable=on"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    file = DeadFile(path, daemon)
    try:
        until(lambda: daemon.poll() is not None or str(path) in _mounts(), "the mount")
        assert daemon.poll() is None, daemon.communicate()[1]
        yield file
    finally:
        file.close()
        subprocess.run(["fusermount3", "-u", "-z", path], stderr=subprocess.DEVNULL, check=False)


@contextmanager
def guest_on(
    qemu: Path, accel: Accelerator, folder: Path, firmware: Firmware = "pflash"
) -> Iterator[tuple[Guest, DeadFile]]:
    """A guest that has the file open, for a worker thread and for an IOThread."""
    with fuse_file(folder) as file:
        where = f"file.driver=file,file.filename={file.path},file.locking=off"
        arguments = [
            "-object", f"iothread,id={IOTHREAD}",
            "-drive", f"if=none,id={READ},format=raw,{where}",
            "-blockdev", f"raw,node-name={EXPORTED},{where}",
        ]  # fmt: skip
        with Guest(qemu, accel, firmware, extra_args=arguments) as guest:
            try:
                address = {"type": "unix", "data": {"path": SERVER}}
                guest.qmp.command("nbd-server-start", addr=address)
                export = {"type": "nbd", "id": "e", "node-name": EXPORTED, "iothread": IOTHREAD}
                guest.qmp.command("block-export-add", **export)
                yield guest, file
            finally:
                # Not even SIGKILL ends a thread that waits for an answer.
                file.thaw()


@contextmanager
def locked_memory_map(qemu: Path, folder: Path) -> Iterator[tuple[Guest, DeadFile]]:
    """A guest in which nobody can read memory any more, until ``thaw``.

    A thread unmaps dirty memory of the file, and so holds the lock of the memory map; another one
    maps some, and is the next to get it: whoever wants to read comes after that.
    """
    with fuse_file(folder) as file, Guest(qemu, firmware="idle") as guest:
        try:
            backend = {"qom-type": "memory-backend-file", "id": "m", "mem-path": str(file.path)}
            more = {"size": FILE_BYTES, "share": True, "prealloc": True}
            guest.qmp.command("object-add", **backend, **more)
            file.freeze()
            guest.qmp.command("object-del", id="m")
            until(lambda: changing_the_map(guest.pid) == 1, "the unmapping")
            # The monitor's thread needs more and more room for it.
            threading.Thread(target=_send_much, args=(guest,), daemon=True).start()
            until(lambda: changing_the_map(guest.pid) > 1, "the mapping", READING_S)
            yield guest, file
        finally:
            file.thaw()


def _send_much(guest: Guest) -> None:
    with socket.socket(socket.AF_UNIX) as monitor, suppress(OSError):
        monitor.connect(str(guest.second_qmp_socket))
        monitor.sendall(b'{"execute": "' + bytes([ord("x")]) * MUCH)


def changing_the_map(pid: int) -> int:
    """How many threads sleep uninterruptibly in a system call that changes the memory map."""
    count = 0
    for folder in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            call = (folder / "syscall").read_text().split()[0]
            count += state == "D" and call in MAP_CALLS
    return count


def threads_in_fuse(pid: int) -> dict[int, str]:
    """The threads that wait for the file system: their wait channels, by tid."""
    found = {}
    for tid in os.listdir(f"/proc/{pid}/task"):
        with suppress(OSError):
            channel = Path(f"/proc/{pid}/task/{tid}/wchan").read_text()
            if channel.startswith(CHANNELS):
                found[int(tid)] = channel
    return found


def _client(guest: Guest) -> subprocess.Popen[bytes]:
    """Asks the export where its data lies."""
    return subprocess.Popen(
        [_beside(guest.qemu, "qemu-img"), "map", f"nbd+unix:///{EXPORTED}?socket={SERVER}"],
        cwd=guest.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _beside(qemu: Path, program: str) -> str:
    beside = qemu.with_name(program)
    return str(beside) if beside.exists() else shutil.which(program) or program


def _mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
