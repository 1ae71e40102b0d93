"""When gdb must not, or cannot, be let loose on a process."""

from __future__ import annotations

import os
import shutil

from qtrace.errors import NoSuchProcess, RecorderUnavailable, TargetError
from qtrace.gdb.target_state import is_stopped
from qtrace.host.capabilities import check_gdb, check_ptrace_scope
from qtrace.machine.arch_x86_64 import BREAKPOINT
from qtrace.machine.unstoppable import REHEARSAL_S, rehearse
from qtrace.process.process import Process


def check_usable(process: Process) -> None:
    """Refuse before anything is begun.

    Raises:
        RecorderUnavailable: no gdb, or not allowed.
        TargetError: it is being traced, or stopped.
    """
    if shutil.which("gdb") is None:
        raise RecorderUnavailable("gdb is not installed", "apt-get install gdb")
    refuse_unwritable(process)
    refuse_traced(process)
    if is_stopped(process.pid):
        raise TargetError(
            f"process {process.pid} is stopped (SIGSTOP), and gdb would let it run",
            f"kill -CONT {process.pid}, or record it by eBPF",
        )


def refuse_unwritable(process: Process) -> None:
    """Raises RecorderUnavailable when what gdb has done could not be undone by its watchdog."""
    try:
        os.close(os.open(f"/proc/{process.pid}/mem", os.O_RDWR | os.O_CLOEXEC))
    except PermissionError as error:
        raise RecorderUnavailable(
            f"not allowed to write to the memory of process {process.pid}",
            "run qtrace as root or as QEMU's user, or record it by eBPF",
        ) from error
    except FileNotFoundError as error:
        raise NoSuchProcess(process.pid) from error


def refuse_unstoppable(process: Process) -> None:
    """Raises RecorderUnavailable when a thread does not stop: gdb would hold all others for it."""
    if thread := rehearse(process.pid):
        raise RecorderUnavailable(
            f"gdb would hold process {process.pid} until its last thread has stopped: "
            f"{thread.sentence}, and did not stop in {REHEARSAL_S:.1f} s",
            "attach --backend ebpf holds nobody, nor does inspect without --gdb; "
            "or wait until that thread goes on",
        )


def refuse_traced(process: Process) -> None:
    """Raises TargetError when somebody else traces it: only one may."""
    if tracer := process.describe_tracer():
        raise TargetError(
            f"process {process.pid} is traced already, by {tracer}",
            "end that one first, as only one may trace a process; eBPF can record beside it",
        )


def original_code(process: Process, addresses: frozenset[int]) -> dict[int, bytes]:
    """The file's byte at each run-time address.

    Raises TargetError when it is not what is there now: where a uprobe sits, the kernel takes
    the trap and gdb never learns of it.
    """
    module = process.binary
    code = {}
    for address in addresses:
        byte = module.elf.read(address - module.bias, 1)
        there = process.memory.read(address, 1)
        if not there or byte != there:
            what = "a probe" if there == bytes([BREAKPOINT]) else "other code than its file"
            raise TargetError(
                f"process {process.pid} has {what} at {module.name}@{address - module.bias:#x}",
                "end the other recording of this process first",
            )
        code[address] = byte
    return code


def ptrace_refused(process: Process, text: str) -> RecorderUnavailable:
    """Why gdb could not attach; ``text`` is what it said. Raises TargetError, see above."""
    refuse_traced(process)
    scope = check_ptrace_scope()
    if not scope.ok:
        return RecorderUnavailable(scope.detail, scope.remedy)
    return RecorderUnavailable(
        f"gdb may not attach to process {process.pid}: {text}",
        "run qtrace as root, outside a container's limits; qtrace doctor says more",
    )


def gdb_unusable(error: Exception) -> RecorderUnavailable:
    """Why a gdb did not start as ours must."""
    check = check_gdb()
    if not check.ok:
        return RecorderUnavailable(check.detail, check.remedy)
    text = str(error) or "it ends or does not answer"
    return RecorderUnavailable(f"gdb cannot be used: {text}", "qtrace doctor says what is missing")
