"""A storage daemon that serves a disk by NBD."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.live.support.ptraced import until


@contextmanager
def serving(qemu: Path, path: Path, disk: str) -> Iterator[int]:
    """The pid of a storage daemon that serves a disk, as ``--blockdev`` takes it, at a socket."""
    server = subprocess.Popen(
        [qemu.with_name("qemu-storage-daemon"),
         "--blockdev", f"{disk},node-name=disk",
         "--nbd-server", f"addr.type=unix,addr.path={path}",
         "--export", "nbd,id=e,node-name=disk,name=disk,writable=on"]
    )  # fmt: skip
    try:
        until(path.exists, "the server")
        yield server.pid
    finally:
        server.kill()
        server.wait()


def client_of(path: Path) -> str:
    """The disk that is served there, as ``-blockdev`` takes it."""
    return f"nbd,export=disk,server.type=unix,server.path={path}"
