"""What devices have the pool's threads do that is no block request: a file of a share (9pfs) that
does not answer keeps a guest waiting in which no event loop and no disk is stuck."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtrace.lab.firmware import CHIP_BYTES, assemble
from qtrace.lab.guest import Accelerator, Guest
from tests.live.support.dead_fuse import DeadFile, fuse_file, threads_in_fuse
from tests.live.support.gdb_cases import everywhere
from tests.live.support.inspecting import inspect
from tests.live.support.loads import LINK_ADDRESS
from tests.live.support.ptraced import until

pytestmark = [pytest.mark.qemu, pytest.mark.fuse]

FIRMWARE = Path(__file__).parent / "support" / "virtio_9p.S"


class Sharing(Guest):
    """Its guest asks for the file."""

    def _image(self) -> bytes:
        return assemble(FIRMWARE, LINK_ADDRESS, ["NAME=fuse.raw"]).rjust(CHIP_BYTES, b"\xff")


@contextmanager
def waiting_for_a_share(
    qemu: Path, accel: Accelerator, folder: Path, *arguments: str
) -> Iterator[tuple[Guest, DeadFile, int]]:
    """A guest that waits for a file of its share, the file, and the worker thread that does."""
    share = f"local,id=share,path={folder},security_model=none,multidevs=remap"
    device = "virtio-9p-pci,fsdev=share,mount_tag=share,addr=4,disable-modern=on"
    own = ("-S", "-fsdev", share, "-device", device, *arguments)
    with fuse_file(folder) as file, Sharing(qemu, accel, "idle", extra_args=own) as guest:
        file.freeze()
        try:
            guest.qmp.command("cont")
            until(lambda: threads_in_fuse(guest.pid), "the look at the file")
            (tid,) = threads_in_fuse(guest.pid)
            yield guest, file, tid
        finally:
            file.thaw()


@everywhere
def test_a_share_that_does_not_answer_is_told_with_whoever_serves_it(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    with waiting_for_a_share(qemu_binary, accel, tmp_path) as (guest, file, tid):
        status, document, _err = inspect("--pid", guest.pid)
    assert (status, document["verdict"]) == (1, "request-stuck")
    (finding,) = document["findings"]
    assert finding["sentence"].startswith("a device's work in the thread pool, no block request: ")
    assert f"worker thread {tid} is in newfstatat" in finding["sentence"]
    assert f" of {file.path.name}, " in finding["sentence"]
    assert [one["pid"] for one in finding["processes"]] == [file.pid]
    assert finding["processes"][0]["held"]


@everywhere
def test_a_request_for_which_no_worker_is_free_waits_behind_what_they_have_in_hand(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    """A pool has 64 threads, here one."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    arguments = (
        "-object", "main-loop,id=loop,thread-pool-max=1",
        "-drive", f"if=none,id=d,format=raw,file={tmp_path / 'disk'}",
    )  # fmt: skip
    with waiting_for_a_share(qemu_binary, accel, tmp_path, *arguments) as (guest, file, tid):
        line = 'qemu-io d "aio_read 0 4096"'
        guest.qmp.command("human-monitor-command", **{"command-line": line})
        status, document, _err = inspect("--pid", guest.pid)
    assert (status, document["verdict"]) == (1, "request-stuck")
    (finding,) = document["findings"]
    assert finding["sentence"].startswith("a device's work in the thread pool, no block request: ")
    assert finding["sentence"].endswith("; for 1 more request no worker thread is free")
    assert f"worker thread {tid} is in newfstatat" in finding["sentence"]
    assert [one["pid"] for one in finding["processes"]] == [file.pid]
