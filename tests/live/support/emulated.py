"""A QEMU for aarch64 hosts, run by an emulator of such programs, and what gdb says of it.

gdb stops it inside a QMP command, so that its event loops are where they should be; it writes the
core, and unwinds the stacks itself.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tests.builds import ROOT, Build
from tests.limits import TIMEOUT_S

EMULATOR = ROOT / ".cache/qemu-user/usr/bin/qemu-aarch64"
GDB = ROOT / ".cache/gdb-multiarch/usr/bin/gdb-multiarch"
STOPS_AT, COMMAND = "qmp_query_status", "query-status"
# The emulator does not say which pages of a file's mapping were written, so that gdb leaves them
# out unless whole mappings of files are asked for (core(5)); the kernel's cores have these pages.
# All of it is read through gdb's protocol: one heap, and small stacks.
STARTER = 'echo 0x37 >/proc/self/coredump_filter; ulimit -s 2048; MALLOC_ARENA_MAX=1 exec "$@"'
# Of a thread's notes: a name of 5 bytes, so many of data, the type.
PRSTATUS = struct.pack("<3I", 5, 0x188, 1) + b"CORE\0\0\0\0"
SIGINFO = struct.pack("<3I", 5, 0x80, 0x53494749) + b"CORE\0\0\0\0"
NT_ARM_TLS, PID_AT = 0x401, 32


@dataclass(frozen=True, slots=True)
class Taken:
    """A core, and by tid the stack that gdb has unwound, leaf first."""

    core: Path
    root: Path
    stacks: dict[int, list[int]]


def absent() -> str:
    """Why there is no such emulator, or debugger, here; empty when there is."""
    missing = [path for path in (EMULATOR, GDB) if not path.exists()]
    return f"{missing[0].name} is not here: make qemus" if missing else ""


def take_core(
    build: Build,
    cpu: str,
    folder: Path,
    options: Sequence[str] = (),
    commands: Sequence[dict[str, object]] = (),
) -> Taken:
    """Run a QEMU without a guest until it carries out a command.

    Args:
        cpu: ``max`` signs return addresses, where the program's code asks for it.
        options: more for its command line.
        commands: what it is told before; each must succeed.
    """
    root = build.files.parents[1]
    program = build.files / build.system
    debugged, monitor, core = folder / "gdb.sock", folder / "qmp.sock", folder / f"core.{cpu}"
    command = [
        "/bin/sh", "-c", STARTER, "sh", EMULATOR, "-L", root, "-cpu", cpu, "-g", debugged, program,
        "-M", "none", "-accel", "tcg,tb-size=8", "-nodefaults", "-display", "none", "-S",
        "-L", root / "usr/share/qemu", "-object", "iothread,id=io0",
        "-qmp", f"unix:{monitor},server=on,wait=off", *options,
    ]  # fmt: skip
    with running(command, folder / "qemu.log"):
        wait_for(debugged)
        orders = [
            "set pagination off", "set backtrace past-main on", f"set sysroot {root}",
            f"file {program}", f"target remote {debugged}", f"break {STOPS_AT}", "continue",
            "thread apply all bt",
            r'thread apply all printf "TP %#lx\n", $TPIDR_EL0', f"gcore {core}",
        ]  # fmt: skip
        gdb = [GDB, "-nx", "-batch", *(word for order in orders for word in ("-ex", order))]
        said = folder / "gdb.log"
        with running(gdb, said) as debugger:
            ask(monitor, commands)
            debugger.wait(TIMEOUT_S)
    text = said.read_text()
    blocks = re.findall(
        r"^Thread \d+ \(Thread \d+\.(\d+)[^\n]*\n(.*?)(?=^\n|\Z)", text, re.M | re.S
    )
    stacks: dict[int, list[int]] = {}
    pointers: dict[int, int] = {}
    for tid, block in blocks:
        if found := re.match(r"TP (0x[0-9a-f]+)", block):
            pointers[int(tid)] = int(found[1], 16)
        else:
            stacks[int(tid)] = frames_of(block)
    assert core.exists(), text
    add_thread_pointers(core, pointers)
    return Taken(core, root, stacks)


def frames_of(block: str) -> list[int]:
    return [int(pc, 16) for pc in re.findall(r"^#\d+ +(0x[0-9a-f]+)", block, re.M)]


@contextmanager
def running(command: list[object], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.05)


def ask(monitor: Path, commands: Sequence[dict[str, object]]) -> None:
    """Send them, and the command at which it is stopped: nobody waits for the answer of that."""
    wait_for(monitor)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT_S)
        client.connect(os.fspath(monitor))
        with client.makefile("rw") as lines:
            lines.readline()
            for command in ({"execute": "qmp_capabilities"}, *commands):
                send(lines, command)
                while "return" not in (answer := json.loads(lines.readline())):
                    assert "error" not in answer, answer
            send(lines, {"execute": COMMAND})
            # Until the program is gone: a client that leaves would be in the core. Where others
            # are busy, all of its memory is long in coming.
            client.settimeout(2 * TIMEOUT_S)
            with suppress(ConnectionError):
                lines.read()


def send(lines: TextIO, command: dict[str, object]) -> None:
    lines.write(json.dumps(command) + "\n")
    lines.flush()


def add_thread_pointers(core: Path, pointers: dict[int, int]) -> None:
    """The kernel's cores have NT_ARM_TLS. gdb writes none of an emulated thread, and what it says
    of the register takes the place of a note that is of no use here."""
    with core.open("r+b") as file:
        data = file.read()
        at = data.find(PRSTATUS)
        while at >= 0:
            (tid,) = struct.unpack_from("<i", data, at + len(PRSTATUS) + PID_AT)
            note = data.index(SIGINFO, at)
            file.seek(note + 8)
            file.write(struct.pack("<I", NT_ARM_TLS))
            file.seek(note + len(SIGINFO))
            file.write(struct.pack("<Q", pointers[tid]))
            at = data.find(PRSTATUS, note)
