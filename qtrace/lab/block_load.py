"""Block I/O as a load: ``qemu-img bench`` on an image, or on what a storage daemon serves."""

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qtrace.errors import LabFailed

DISK_BYTES = 64 << 20
DEPTH = 32


def disk_image(folder: Path, size: int = DISK_BYTES) -> Path:
    """A raw image without data, so many bytes long."""
    path = folder / "disk.raw"
    with path.open("wb") as file:
        file.truncate(size)
    return path


def bench_command(
    qemu_img: Path, file: Path | str, requests: int, *options: str, depth: int = DEPTH
) -> list[str]:
    """So many reads of 4 KiB, ``depth`` at a time; ``file`` is a path or an URL."""
    return [str(qemu_img), "bench", "-f", "raw", "-t", "none", *options, "-c", str(requests),
            "-d", str(depth), "-s", "4096", str(file)]  # fmt: skip


@contextmanager
def storage_daemon(
    program: Path, disk: Path, iothread: str | None = None
) -> Iterator[tuple[int, str]]:
    """A qemu-storage-daemon that serves a disk by NBD: its pid and the URL.

    Args:
        disk: a raw image; the socket lies beside it.
        iothread: the id of the IOThread that is to serve it. Before 8.0 QEMU aborts when the
            client of such an export goes away (nbd_blockdev_client_closed() asserts that it is
            on the main thread).

    Raises LabFailed when it does not start.
    """
    socket = disk.with_name("nbd")
    export = "type=nbd,id=export,node-name=disk,name=disk"
    options = ["--object", f"iothread,id={iothread}"] if iothread else []
    process = subprocess.Popen(
        [program, *options, "--blockdev", f"driver=file,node-name=disk,filename={disk}",
         "--nbd-server", f"addr.type=unix,addr.path={socket}",
         "--export", f"{export},iothread={iothread}" if iothread else export]
    )  # fmt: skip
    try:
        if iothread:
            # Nobody wants a core of what is known to abort: it would lie where we were started.
            resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
        while not socket.exists():
            if process.poll() is not None:
                raise LabFailed(
                    f"{program} ended with status {process.returncode} before it served {disk}",
                    "what it said stands above",
                )
            time.sleep(0.01)
        yield process.pid, nbd_url(socket)
    finally:
        process.kill()
        process.wait()


def nbd_url(socket: Path) -> str:
    """That of the export ``disk`` at a socket."""
    return f"nbd+unix:///disk?socket={socket}"
