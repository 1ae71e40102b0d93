"""QEMU programs under ``qtrace run --all`` that are given a known number of requests.

Each of them takes the program (a copy of its own: tests.live.support.counted), the folder in which
QEMU's other programs lie, a folder to work in, the number of requests and more options, and
returns the trace when the program has ended by itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qtrace.errors import QtraceError
from qtrace.lab.block_load import bench_command, disk_image, nbd_url
from qtrace.lab.firmware import CHIP_BYTES, assemble
from qtrace.process.qmp_client import QmpClient
from tests.limits import TIMEOUT_S
from tests.live.support.attached import wait_for
from tests.live.support.benched import ended_well
from tests.live.support.ptraced import children

FIRMWARE = Path(__file__).with_name("virtio_blk.S")
# Where its end, 512 bytes, lies in the guest's address space.
LINK_ADDRESS = 0xFFFFFE00
IOTHREAD = "io7"


@dataclass
class Load:
    """What a load left: its trace, and what QMP said of the IOThreads while it ran."""

    trace: Path
    iothreads: dict[str, int] = field(default_factory=dict)


def image(program: Path, _bin: Path, folder: Path, requests: int, *options: str) -> Load:
    """qemu-img bench."""
    trace = folder / "trace.parquet"
    # Native aio is done with a hole before anybody waits for it.
    disk = disk_image(folder)
    with recorded(trace, *bench_command(program, disk, requests, *options)):
        pass
    return Load(trace)


def nbd(program: Path, bin: Path, folder: Path, requests: int, *options: str) -> Load:
    """qemu-nbd, which ends with its one client."""
    trace, socket = folder / "trace.parquet", folder / "nbd"
    command = [program, "-f", "raw", "-k", socket, "-x", "disk", *options, _full_disk(folder)]
    with recorded(trace, *command):
        wait_for(socket.exists)
        _client(bin, socket, requests)
    return Load(trace)


def daemon(program: Path, bin: Path, folder: Path, requests: int, *options: str) -> Load:
    """qemu-storage-daemon with an NBD export."""
    trace, socket, qmp = folder / "trace.parquet", folder / "nbd", folder / "qmp"
    command = [
        program, "--chardev", f"socket,id=q,path={qmp},server=on,wait=off",
        "--monitor", "chardev=q",
        "--blockdev", _blockdev(_full_disk(folder), *options),
        "--nbd-server", f"addr.type=unix,addr.path={socket}",
        "--export", "type=nbd,id=e,node-name=disk,name=disk",
    ]  # fmt: skip
    with recorded(trace, *command):
        wait_for(socket.exists)
        _client(bin, socket, requests)
        with QmpClient(qmp) as client:
            client.command("quit")
    return Load(trace)


def system(program: Path, _bin: Path, folder: Path, requests: int, *options: str) -> Load:
    """qemu-system-x86_64: a guest reads from a virtio-blk disk that has an IOThread.

    ``options`` of QEMU: the accelerator.
    """
    trace, qmp, done = folder / "trace.parquet", folder / "qmp", folder / "done"
    chip = assemble(FIRMWARE, LINK_ADDRESS, [f"REQUESTS={requests}"])
    (folder / "firmware").write_bytes(chip.rjust(CHIP_BYTES, b"\xff"))
    device = "virtio-blk-pci,drive=disk,addr=4,disable-modern=on,queue-size=128"
    command = [
        program, *options, "-S", "-machine", "pc", "-m", "32", "-name", "load,debug-threads=on",
        "-nodefaults", "-no-user-config", "-display", "none", "-bios", folder / "firmware",
        "-object", f"iothread,id={IOTHREAD}", "-blockdev", _blockdev(_full_disk(folder)),
        "-device", f"{device},request-merging=off,iothread={IOTHREAD}",
        "-debugcon", f"file:{done}", "-qmp", f"unix:{qmp},server=on,wait=off",
    ]  # fmt: skip
    with recorded(trace, *command):
        wait_for(lambda: answers(qmp))
        with QmpClient(qmp) as client:
            threads = {t["id"]: t["thread-id"] for t in client.command("query-iothreads")}
            client.command("cont")
            wait_for(lambda: done.read_bytes() == b".")
            # A thread's name is read while it is there.
            raw = trace.with_name(f"{trace.name}.raw")
            wait_for(lambda: IOTHREAD.encode() in raw.read_bytes())
            client.command("quit")
    return Load(trace, threads)


Run = Callable[..., Load]


def answers(socket: Path) -> bool:
    """Whether QMP can be had there by now."""
    try:
        with QmpClient(socket):
            return True
    except QtraceError:
        return False


def _full_disk(folder: Path) -> Path:
    """A server does not read holes."""
    disk = folder / "disk.raw"
    disk.write_bytes(b"data" * (1 << 20))
    return disk


def _blockdev(disk: Path, *options: str) -> str:
    return ",".join(("driver=file", "node-name=disk", f"filename={disk}", *options))


def _client(bin: Path, socket: Path, requests: int) -> None:
    command = bench_command(bin / "qemu-img", nbd_url(socket), requests)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=TIMEOUT_S)


@contextmanager
def recorded(
    trace: Path,
    *command: object,
    options: tuple[str, ...] = (),
    end: str = "status",
    value: int = 0,
) -> Iterator[int]:
    """The pid of the command under ``qtrace run --all``, armed; it must end by itself, as told."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qtrace", "run", "--all", *options, "--format", "json",
         "-o", str(trace), "--", *map(str, command)],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        # What the program itself has to say may come first.
        while not (line := process.stderr.readline()).startswith("recording"):
            assert line, process.communicate()
        (pid,) = children(process.pid)
        yield pid
        out, err = process.communicate(timeout=TIMEOUT_S)
        report: dict[str, Any] = json.loads(out) if out else {}
        assert report, err
        assert ended_well(process.returncode, report), err
        assert report["traces"][0]["exit"] == {end: value}
    finally:
        # The recorder sees that the program has ended.
        for child in children(process.pid) if process.poll() is None else ():
            os.kill(child, signal.SIGKILL)
        process.communicate()
