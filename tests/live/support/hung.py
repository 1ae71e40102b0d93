"""A stock QEMU that hangs for ever in its shutdown, with a bottom half that nobody can run."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qtrace.lab.guest import Accelerator, Guest
from qtrace.machine.arch_x86_64 import RETURN_ADDRESS, RSP
from qtrace.machine.memory import read_word
from qtrace.machine.thread_files import read_system_call
from qtrace.process.process import Process
from qtrace.process.stack import Unwinder
from tests.limits import TIMEOUT_S

JOB = "bk"
# A backup whose first write blkdebug never lets go on; guest memory stays out of core files.
ARGUMENTS = (
    "-object", "iothread,id=iot0", "-machine", "dump-guest-core=off",
    "-blockdev", "driver=null-co,node-name=source,size=65536,read-zeroes=off",
    "-blockdev", "driver=raw,node-name=target,file.driver=blkdebug,"
                 "file.image.driver=null-co,file.image.size=65536",
)  # fmt: skip
# So that a core file holds a small translation buffer.
TCG = ("-accel", "tcg,tb-size=1")


@contextmanager
def guest_with_sleeping_job(
    qemu: Path, accel: Accelerator, more: Sequence[str] = ()
) -> Iterator[Guest]:
    """An idle guest with an IOThread ``iot0`` and the job ``bk``, whose coroutine sleeps."""
    arguments = [*(TCG if accel == "tcg" else ()), *ARGUMENTS, *more]
    with Guest(qemu, accel, firmware="idle", extra_args=arguments) as guest:
        guest.qmp.command(
            "human-monitor-command", **{"command-line": 'qemu-io target "break write_aio A"'}
        )
        guest.qmp.command(
            "blockdev-backup",
            **{"job-id": JOB, "device": "source", "target": "target", "sync": "full"},
        )
        yield guest


@contextmanager
def hung_guest(qemu: Path, accel: Accelerator, more: Sequence[str] = ()) -> Iterator[Guest]:
    """The same, after ``quit``: the main thread drains the job for ever, polling ``main``."""
    with guest_with_sleeping_job(qemu, accel, more) as guest, socket.socket(socket.AF_UNIX) as qmp:
        # Not by the guest's own client: QEMU hangs before or after it has answered.
        qmp.connect(str(guest.second_qmp_socket))
        qmp.sendall(b'{"execute": "qmp_capabilities"} {"execute": "quit"}')
        deadline = time.monotonic() + TIMEOUT_S
        while "bdrv_drain_all_begin" not in functions_of_main_thread(guest.pid):
            assert time.monotonic() < deadline, "QEMU does not hang in its shutdown"
            time.sleep(0.01)
        yield guest


def functions_of_main_thread(pid: int) -> list[str]:
    """The functions that the main thread sleeps in, leaf first; empty when it runs."""
    process = Process(pid)
    blocked = read_system_call(pid, pid)
    if blocked is None:
        return []
    unwinder = Unwinder(process.space, process.binary.elf.architecture)
    chain = unwinder.unwind(
        {RSP: blocked.stack_pointer, RETURN_ADDRESS: blocked.pc},
        lambda address: read_word(process.memory, address),
    )
    return [name.split("+0x")[0] for name in unwinder.names(chain)]
