"""A live QEMU as the source of looks: only /proc, nothing is stopped or changed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from qtrace.binary.module import Module
from qtrace.errors import HasChanged, NoSuchProcess, PermissionMissing
from qtrace.host.held_threads import Holders
from qtrace.machine.architectures import HOST
from qtrace.machine.memory import ProcessMemory
from qtrace.machine.syscalls import syscall_name
from qtrace.machine.thread_files import ThreadFiles, system_call
from qtrace.machine.thread_pointer import is_thread_pointer, robust_list, thread_pointer
from qtrace.process.look_source import State
from qtrace.process.maps import AddressSpace, GuardedMemory
from qtrace.process.process import Identity, Process, as_root
from qtrace.qemu.aio.jump_buffer import guard_of_auxv


class LiveSource:
    """A running process, read through /proc."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._files = ThreadFiles(process.pid)
        self._holders = Holders(process.pid, self._files)
        self._guarded = GuardedMemory(process.pid)
        self._pointers: dict[int, int] = {}
        self._tids: set[int] = set()
        self._states: dict[int, tuple[str, str, State]] = {}
        self._code = process.binary.elf.code[0].vaddr + process.binary.bias
        self._inner = self._inner_tids() if self._is_nested() else {}

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def program(self) -> str:
        return self._process.program

    @property
    def memory(self) -> ProcessMemory:
        return self._process.memory

    @property
    def space(self) -> AddressSpace:
        return self._process.space

    @property
    def binary(self) -> Module:
        return self._process.binary

    def threads(self) -> dict[int, str]:
        """Names by tid. Raises NoSuchProcess."""
        names = self._files.names()
        if not names:
            raise NoSuchProcess(self.pid)
        if self._tids != names.keys():
            self._tids = set(names)
            self._states = {tid: s for tid, s in self._states.items() if tid in names}
        return names

    def held(self, tid: int) -> str:
        """As ``LookSource.held``: stopped by a signal, by a debugger, frozen by a cgroup.

        Asked for the main thread, as each look does last of all, it also raises HasChanged: the
        process runs another program than the one that was looked at.
        """
        letter = self._files.letter(tid)
        if tid == self.pid:
            self._check_identity(letter)
        return self._holders.reason(tid, letter)

    def _check_identity(self, letter: str) -> None:
        """What was read may be of none, of two programs, or not be all.

        Raises NoSuchProcess, HasChanged, PermissionMissing.
        """
        known = self._process.identity
        now = Identity.of(self._files.read(self.pid, "stat"))
        if known and now and not known.may_be(now):
            raise HasChanged(self.pid)
        # A process that has ended stays, as a zombie, until its parent notices; one that is
        # about to end has lost its memory before.
        if letter in ("", "Z", "X") or not self.memory.read(self._code, 1):
            raise NoSuchProcess(self.pid)
        call, _times, _state = self._states.get(self.pid, ("running", "", None))
        if not call:
            # A thread whose file is not to be read is none that runs.
            raise PermissionMissing(
                f"not allowed to see what the threads of process {self.pid} do", as_root()
            )

    def ending(self) -> None:
        """It lives."""

    def state(self, tid: int) -> State:
        """From /proc/PID/task/TID/syscall: also of a stopped thread that is in no call."""
        call = self._files.read(tid, "syscall")
        times = "" if call.startswith("running") else self._files.read(tid, "schedstat")
        known = self._states.get(tid)
        if known is None or known[:2] != (call, times) or not known[2].cpu_ns:
            known = self._states[tid] = (call, times, self._new_state(tid, call, times))
        return known[2]

    def reads(self, tid: int) -> int | None:
        """How often a thread has called read(2), or one like it, so far; None where that is not
        known."""
        fields = self._files.read(tid, "io").split()
        return int(fields[fields.index("syscr:") + 1]) if "syscr:" in fields else None

    def sleeps_at(self, tid: int) -> tuple[int, int] | None:
        """The stack pointer of a thread that sleeps, and where it goes on; None of one that runs,
        or is gone."""
        found = system_call(self._files.read(tid, "syscall"))
        return (found.stack_pointer, found.pc) if found else None

    def letter(self, tid: int) -> str:
        """As ``ThreadFiles.letter``."""
        return self._files.letter(tid)

    def _new_state(self, tid: int, call: str, times: str) -> State:
        """The state of a thread that has run since the last look."""
        state = _state(call, times)
        if state.registers is None:
            return state
        return replace(state, letter=self._files.letter(tid), wchan=self._files.wchan(tid))

    def thread_pointers(self) -> dict[int, int]:
        """fs_base by tid, of the threads last seen."""
        memory, known = self.memory, self._pointers
        self._pointers = {}
        for tid in self._tids or self.threads():
            inner = self._inner_tid(tid)
            pointer = known.get(tid)
            if pointer is None or not is_thread_pointer(memory, pointer, inner):
                pointer = thread_pointer(memory, robust_list(tid), inner)
            if pointer is not None:
                self._pointers[tid] = pointer
        return dict(self._pointers)

    def pointer_guard(self) -> int | None:
        try:
            auxv = Path(f"/proc/{self.pid}/auxv").read_bytes()
        except OSError:
            return None
        return guard_of_auxv(self.memory, auxv)

    def guarded(self) -> list[tuple[int, int]]:
        return self._guarded.find()

    def outer_tid(self, tid: int) -> int:
        """The tid here of a thread that calls itself ``tid`` in its own pid namespace."""
        if not self._inner:
            return tid
        for outer in self.threads():
            if self._inner_tid(outer) == tid:
                return outer
        return tid

    def _is_nested(self) -> bool:
        return len(_namespace_tids(self.pid, self.pid)) > 1

    def _inner_tids(self) -> dict[int, int]:
        return {tid: _namespace_tids(self.pid, tid)[-1] for tid in self.threads()}

    def _inner_tid(self, tid: int) -> int:
        if self._inner and tid not in self._inner:
            self._inner[tid] = _namespace_tids(self.pid, tid)[-1]
        return self._inner.get(tid, tid)


def _state(call: str, times: str) -> State:
    """A thread's state from its files "syscall" and "schedstat"."""
    found = system_call(call)
    if found is None:
        return State("", None)
    arguments = found.arguments
    name = syscall_name(found.number, arguments[1], HOST.system_calls) if arguments else ""
    registers = {HOST.stack_pointer: found.stack_pointer, HOST.pc: found.pc}
    if not found.pc:
        # A kernel thread that bears the process's id (KVM's, vhost's).
        return State(name, None, kernel=True)
    cpu_ns, _waited_ns, turns = map(int, times.split()) if times else (0, 0, 0)
    return State(name, registers, cpu_ns, turns=turns, arguments=arguments)


def _namespace_tids(pid: int, tid: int) -> list[int]:
    """A thread's ids, from this pid namespace down to its own."""
    try:
        status = Path(f"/proc/{pid}/task/{tid}/status").read_text(errors="replace")
    except OSError:
        return [tid]
    match = re.search(r"^NSpid:\s*([\d\s]+)$", status, re.MULTILINE)
    return [int(field) for field in match[1].split()] if match else [tid]
