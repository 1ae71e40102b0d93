"""A live QEMU as the source of looks: only /proc, nothing is stopped or changed."""

from __future__ import annotations

import re
from pathlib import Path

from qtrace.errors import NoSuchProcess
from qtrace.target.aio.coroutine import guard_of_auxv
from qtrace.target.aio.tls import find_thread_pointers, is_thread_pointer
from qtrace.target.arch_x86_64 import RETURN_ADDRESS, RSP
from qtrace.target.maps import AddressSpace, Mapping, Module, read_maps
from qtrace.target.memory import ProcessMemory
from qtrace.target.process import Process
from qtrace.target.source import State
from qtrace.target.syscalls import syscall_name
from qtrace.target.thread_files import ThreadFiles

# A thread's descriptor lies above its stack; the first thread's in a small mapping of ld.so.
NEAR_STACK = 1 << 16
SMALL = 1 << 20


class LiveSource:
    """A running process, read through /proc."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._files = ThreadFiles(process.pid)
        self._pointers: dict[int, int] = {}
        self._sought: set[int] = set()
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

    def stopped(self) -> bool:
        """Whether it is SIGSTOPped or held by a debugger. Raises NoSuchProcess."""
        state = self._main_state()
        # A process that has ended stays, as a zombie, until its parent notices; one that is
        # about to end has lost its memory before.
        if state in ("", "Z", "X") or not self.memory.read(self._code, 1):
            raise NoSuchProcess(self.pid)
        return state in ("T", "t")

    def ending(self) -> None:
        """It lives."""

    def _main_state(self) -> str:
        """The main thread's state as ps(1) shows it, empty when it is gone."""
        fields = self._files.read(self.pid, "stat").rpartition(")")[2].split()
        return fields[0] if fields else ""

    def state(self, tid: int) -> State:
        """From /proc/PID/task/TID/syscall: also of a stopped thread that is in no call."""
        call = self._files.read(tid, "syscall")
        times = "" if call.startswith("running") else self._files.read(tid, "schedstat")
        known = self._states.get(tid)
        if known is None or known[:2] != (call, times):
            known = self._states[tid] = (call, times, _state(call, times))
        return known[2]

    def thread_pointers(self) -> dict[int, int]:
        """fs_base by tid, of the threads last seen; searched once for each of them."""
        tids = self._tids or set(self.threads())
        memory = self.memory
        self._pointers = {
            tid: pointer
            for tid, pointer in self._pointers.items()
            if tid in tids and is_thread_pointer(memory, pointer, self._inner_tid(tid))
        }
        new = tids - self._pointers.keys() - self._sought
        if new:
            inner = {self._inner_tid(tid): tid for tid in new}
            found = find_thread_pointers(memory, inner, self._areas(new))
            self._pointers |= {inner[tid]: pointer for tid, pointer in found.items()}
            self._sought = (self._sought | new) & tids
        return dict(self._pointers)

    def _areas(self, tids: set[int]) -> list[tuple[int, int]]:
        """Where the threads' descriptors may lie, the likeliest first."""
        writable = [m for m in read_maps(self.pid) if m.perms.startswith("rw") and not m.inode]
        areas = []
        for tid in sorted(tids):
            registers = self.state(tid).registers
            mapping = _around(writable, registers[RSP]) if registers else None
            if registers and mapping:
                areas.append((registers[RSP], min(mapping.end, registers[RSP] + NEAR_STACK)))
        small = sorted(m.end - m.start for m in writable)
        return areas + [
            (m.start, m.end)
            for size in dict.fromkeys(small)
            if size < SMALL
            for m in writable
            if m.end - m.start == size
        ]

    def pointer_guard(self) -> int | None:
        try:
            auxv = Path(f"/proc/{self.pid}/auxv").read_bytes()
        except OSError:
            return None
        return guard_of_auxv(self.memory, auxv)

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
    fields = call.split()
    if len(fields) == 9:
        number = int(fields[0])
        arguments = [int(field, 16) for field in fields[1:3]]
        name = syscall_name(number, arguments[1])
    elif len(fields) == 3:
        name = ""
    else:
        return State("", None)
    registers = {RSP: int(fields[-2], 16), RETURN_ADDRESS: int(fields[-1], 16)}
    if not registers[RETURN_ADDRESS]:
        # A kernel thread that bears the process's id (KVM's, vhost's).
        return State(name, None, kernel=True)
    return State(name, registers, int(times.split()[0]) if times else 0)


def _namespace_tids(pid: int, tid: int) -> list[int]:
    """A thread's ids, from this pid namespace down to its own."""
    try:
        status = Path(f"/proc/{pid}/task/{tid}/status").read_text(errors="replace")
    except OSError:
        return [tid]
    match = re.search(r"^NSpid:\s*([\d\s]+)$", status, re.MULTILINE)
    return [int(field) for field in match[1].split()] if match else [tid]


def _around(mappings: list[Mapping], address: int) -> Mapping | None:
    return next((m for m in mappings if m.start <= address < m.end), None)
