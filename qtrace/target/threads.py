"""What each thread of a QEMU is for, from evidence.

Thread names exist only with ``-name debug-threads=on`` (still opt-in in QEMU 10.2), so the
evidence is, in this order: the tid, QMP, the thread's name, what it is blocked in, and the
functions on its stack.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from qtrace.roles import Role, role_of_functions, role_of_name
from qtrace.target.arch_x86_64 import RETURN_ADDRESS, RSP
from qtrace.target.memory import read_word
from qtrace.target.process import Process
from qtrace.target.stack import COMPLETE, Chain, Unwinder

IOCTL, KVM_RUN = 16, 0xAE80


def role_of_stack(frames: Iterable[str]) -> Role | None:
    """The role that the functions on a stack prove (frames as ``name`` or ``name+0x..``)."""
    return role_of_functions(frame.split("+0x")[0] for frame in frames) or None


class ThreadRoles:
    """The roles of one process's threads; learns more as more is seen."""

    def __init__(self, process: Process, from_qmp: Mapping[int, tuple[Role, str]] = {}) -> None:
        self._process = process
        self._roles: dict[int, Role] = {process.pid: "main"}
        self._iothread_ids: dict[int, str] = {}
        for tid, (role, name) in (from_qmp or {}).items():
            self._roles[tid] = role
            if role == "iothread":
                self._iothread_ids[tid] = name

    def survey(self, unwinder: Unwinder) -> None:
        """Look once at every blocked thread whose name tells nothing, without stopping any."""
        for tid, name in self._process.threads().items():
            if tid not in self._roles and role_of_name(name) is None:
                role = role_of_blocked(self._process, tid, unwinder)
                if role:
                    self._roles[tid] = role

    def look(self, tid: int, name: str, unwinder: Unwinder) -> Role:
        """The role of a thread that came later, by what it is blocked in; else ``other``."""
        if tid not in self._roles and role_of_name(name) is None:
            role = role_of_blocked(self._process, tid, unwinder)
            if role:
                self._roles[tid] = role
        return self.role(tid, name)

    def role(self, tid: int, name: str, frames: Iterable[str] = ()) -> Role:
        """The role of a thread, given its present name and a stack of its own.

        What a name tells is not kept: a new thread has its creator's name until it takes
        its own, so that a fresh worker may be called ``CPU 0/KVM``.
        """
        role = self._roles.get(tid) or role_of_name(name)
        if role is None:
            role = role_of_stack(frames)
            if role is None:
                return "other"
            self._roles[tid] = role
        return role

    def iothread_id(self, tid: int, name: str) -> str:
        """An IOThread's id: from QMP, from its thread's name, else its tid."""
        return self._iothread_ids.get(tid) or (name[3:] if name.startswith("IO ") else str(tid))


def role_of_blocked(process: Process, tid: int, unwinder: Unwinder) -> Role | None:
    """The role of a thread that sits in a system call; None when it runs or shows nothing."""
    blocked = read_syscall(process.pid, tid)
    if blocked is None:
        return None
    number, arguments, stack_pointer, pc = blocked
    if number == IOCTL and arguments[1] == KVM_RUN:
        return "vcpu"
    chain = unwinder.unwind(
        {RSP: stack_pointer, RETURN_ADDRESS: pc},
        lambda address: read_word(process.memory, address),
    )
    frames = unwinder.names(chain)
    return role_of_stack(frames) or ("iothread" if _is_iothread(chain, frames) else None)


def _is_iothread(chain: Chain, frames: list[str]) -> bool:
    """Whether the thread's own function, iothread_run() (static), polls or runs a loop.

    Below it lie QEMU's qemu_thread_start() and libc's two; a poll higher up is a nested one.
    """
    loop = next(iter(frames[-5:]), "").split("+0x")[0]
    return chain.end == COMPLETE and loop in ("aio_poll", "g_main_loop_run")


def read_syscall(pid: int, tid: int) -> tuple[int, list[int], int, int] | None:
    """What a thread is blocked in: number, six arguments, stack pointer, pc.

    None when it is running, gone, or not to be looked at.
    """
    try:
        fields = Path(f"/proc/{pid}/task/{tid}/syscall").read_text().split()
    except OSError:
        return None
    if len(fields) != 9 or fields[0] == "-1":
        return None
    values = [int(field, 16) for field in fields[1:]]
    return int(fields[0]), values[:6], values[6], values[7]
