"""What threads of a live process show of their roles, which ``qtrace.roles`` decides."""

from __future__ import annotations

from qtrace.inspection.qemu import LiveQemu
from qtrace.machine.architectures import HOST
from qtrace.machine.memory import read_word
from qtrace.machine.syscalls import RUNNING_GUEST, syscall_name
from qtrace.process.stack import COMPLETE, Chain
from qtrace.roles import Role, role_of_stack


def survey(qemu: LiveQemu) -> None:
    """Look once at every blocked thread whose name tells nothing, without stopping any.

    Raises NoSuchProcess.
    """
    names = qemu.process.threads()
    qemu.roles.present(names)
    for tid, name in names.items():
        look_at(qemu, tid, name)


def look_at(qemu: LiveQemu, tid: int, name: str) -> Role:
    """The role of a thread, by what it is blocked in where nothing else tells it."""
    if qemu.roles.is_open(tid, name) and (role := _role_of_blocked(qemu, tid)):
        return qemu.roles.prove(tid, role)
    return qemu.roles.role(tid, name)


def _role_of_blocked(qemu: LiveQemu, tid: int) -> Role | None:
    """The role of a thread that sits in a system call; None when it runs or shows nothing."""
    blocked = qemu.read_system_call(tid)
    if blocked is None:
        return None
    if syscall_name(blocked.number, blocked.arguments[1]) == RUNNING_GUEST:
        return "vcpu"
    chain = qemu.unwinder.unwind(
        {HOST.stack_pointer: blocked.stack_pointer, HOST.pc: blocked.pc},
        lambda address: read_word(qemu.memory, address),
    )
    frames = qemu.unwinder.names(chain)
    return role_of_stack(frames) or ("iothread" if _is_iothread(chain, frames) else None)


def _is_iothread(chain: Chain, frames: list[str]) -> bool:
    """Whether the thread's own function, iothread_run() (static), polls or runs a loop.

    Below it lie QEMU's qemu_thread_start() and libc's two; a poll higher up is a nested one.
    """
    loop = next(iter(frames[-5:]), "").split("+0x")[0]
    return chain.end == COMPLETE and loop in ("aio_poll", "g_main_loop_run")
