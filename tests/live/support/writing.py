"""A stock QEMU whose guest writes to a port for ever, behind which nobody reads."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qtrace.lab.guest import Accelerator
from tests.live.support.hung import functions_of_main_thread
from tests.live.support.ptraced import until

# The firmware's end, where the processor begins, and a loop that writes to a port.
FIRMWARE_BYTES, RESET, LOOP = 1 << 16, 0xFFF0, 0xFF00
DEBUG_CONSOLE, SERIAL = 0x402, 0x3F8
PIPE_BYTES, QUIET_S = 4096, 2.0


@contextmanager
def writing_guest(
    qemu: Path, accel: Accelerator, folder: Path, port: int, *, main_sleeps: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A QEMU whose guest writes to a port for ever; nobody reads the pipe behind it.

    Args:
        main_sleeps: it is read at first, until QEMU's main thread has had nothing to do for a
            while.
    """
    firmware, pipe = folder / "firmware.bin", folder / "pipe"
    firmware.write_bytes(firmware_writing_to(port))
    end = open_pipe(pipe)
    command = [
        qemu, "-accel", accel, "-m", "32M", "-display", "none", "-nodefaults",
        "-name", "hangs,debug-threads=on", "-bios", firmware, *device_at(port, pipe),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        if main_sleeps:
            _read_until_it_sleeps(process, end)
        until(lambda: pipe_is_full(end) or process.poll() is not None, "a full pipe")
        assert process.poll() is None, process.communicate()
        yield process
    finally:
        process.kill()
        process.communicate()
        os.close(end)


def _read_until_it_sleeps(process: subprocess.Popen[bytes], end: int) -> None:
    """Take what comes until the main thread, in its loop, has not run for ``QUIET_S``."""
    schedstat = Path(f"/proc/{process.pid}/schedstat")
    seen, since = "", time.monotonic()

    def sleeps() -> bool:
        nonlocal seen, since
        with suppress(BlockingIOError):
            os.read(end, PIPE_BYTES)
        now = schedstat.read_text()
        if now != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() - since >= QUIET_S

    until(lambda: process.poll() is not None or sleeps(), "a main thread that sleeps")


def firmware_writing_to(port: int) -> bytes:
    """A chip whose code writes to a port for ever."""
    # mov dx, port; mov al, 'A'; out dx, al; jmp to the out.
    return firmware_with(b"\xba" + port.to_bytes(2, "little") + b"\xb0\x41\xee\xeb\xfd")


def firmware_with(body: bytes) -> bytes:
    """A chip with real-mode code, from which the processor begins."""
    code = bytearray(b"\x90" * FIRMWARE_BYTES)
    code[RESET : RESET + 3] = b"\xe9" + (LOOP - RESET - 3 & 0xFFFF).to_bytes(2, "little")
    code[LOOP : LOOP + len(body)] = body
    return bytes(code)


def device_at(port: int, pipe: Path) -> list[str]:
    """QEMU's arguments for what writes into the pipe what the guest writes to the port."""
    device = {
        DEBUG_CONSOLE: f"isa-debugcon,iobase={DEBUG_CONSOLE:#x},chardev=d",
        SERIAL: "isa-serial,chardev=d",
    }[port]
    return ["-chardev", f"pipe,id=d,path={pipe}", "-device", device]


def open_pipe(pipe: Path) -> int:
    """Make one that holds little, and open both of its ends; its descriptor, which never waits."""
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return end


def pipe_is_full(end: int) -> bool:
    try:
        os.write(end, b"x")
    except BlockingIOError:
        return True
    return False


def functions_waiting_for_lock(pid: int) -> list[str]:
    functions = functions_of_main_thread(pid)
    return functions if "pthread_mutex_lock" in functions else []
