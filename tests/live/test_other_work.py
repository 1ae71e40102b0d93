"""What devices have the pool's threads do that is no block request: a file of a share (9pfs) that
does not answer keeps a guest waiting in which no event loop and no disk is stuck."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtrace.lab.firmware import CHIP_BYTES, assemble
from qtrace.lab.guest import Accelerator, Guest
from tests.live.support.dead_fuse import fuse_file, threads_in_fuse
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


@everywhere
def test_a_share_that_does_not_answer_is_told_with_whoever_serves_it(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    share = f"local,id=share,path={tmp_path},security_model=none,multidevs=remap"
    device = "virtio-9p-pci,fsdev=share,mount_tag=share,addr=4,disable-modern=on"
    arguments = ("-S", "-fsdev", share, "-device", device)
    with (
        fuse_file(tmp_path) as file,
        Sharing(qemu_binary, accel, "idle", extra_args=arguments) as guest,
    ):
        file.freeze()
        try:
            guest.qmp.command("cont")
            until(lambda: threads_in_fuse(guest.pid), "the look at the file")
            (tid,) = threads_in_fuse(guest.pid)
            status, document, _err = inspect("--pid", guest.pid)
        finally:
            file.thaw()
    assert (status, document["verdict"]) == (1, "request-stuck")
    (finding,) = document["findings"]
    assert finding["sentence"].startswith("a device's work in the thread pool, no block request: ")
    assert f"worker thread {tid} is in newfstatat" in finding["sentence"]
    assert f" of {file.path.name}, " in finding["sentence"]
    assert [one["pid"] for one in finding["processes"]] == [file.pid]
    assert finding["processes"][0]["held"]
