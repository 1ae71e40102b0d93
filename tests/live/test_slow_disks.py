"""Disks that are slow and go on: nobody is accused."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.inspection.request_look import Requests
from qtrace.inspection.request_proof import prove
from qtrace.lab.block_load import bench_command
from qtrace.lab.guest import find_qemu
from qtrace.process.process import Process
from tests.conftest import absent
from tests.live.support.ptraced import until

pytestmark = [pytest.mark.qemu, pytest.mark.soak]

# QEMU sends sixteen at a time: what the server has not read lies in its socket.
AT_ONCE, DEPTH = 4, 48


@contextmanager
def slow_disk(folder: Path, delay_s: int) -> Iterator[str]:
    """The URL of a disk of nbdkit's whose requests take so long each."""
    if not shutil.which("nbdkit"):
        absent("nbdkit", "there is no nbdkit: apt-get install nbdkit")
    path = folder / "slow"
    server = subprocess.Popen(
        ["nbdkit", "--foreground", "--unix", path, f"--threads={AT_ONCE}", "--filter=delay",
         "memory", "64M", f"rdelay={delay_s}"]
    )  # fmt: skip
    try:
        until(path.exists, "the server")
        yield f"nbd+unix:///?socket={path}"
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize("delay_s", [2, 20])
def test_a_slow_disk_is_told_and_no_finding(tmp_path: Path, delay_s: int) -> None:
    program = find_qemu().with_name("qemu-img")
    with slow_disk(tmp_path, delay_s) as url:
        command = bench_command(program, url, 1000, depth=DEPTH)
        bench = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            requests = Requests(Looker(LiveQemu(Process(bench.pid))))
            until(lambda: len(requests.look().blocks.requests) >= DEPTH, "its requests")
            proof = prove(requests, requests.look())
        finally:
            bench.kill()
            bench.wait()
    assert proof.findings == ()
    assert proof.waiting
