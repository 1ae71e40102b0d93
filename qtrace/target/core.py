"""A core file and its executable as the source of looks."""

from __future__ import annotations

import bisect
from pathlib import Path

from qtrace.errors import QtraceError, TargetError
from qtrace.target.aio.coroutine import guard_of_auxv
from qtrace.target.aio.ending import ABORT_MESSAGE, read_abort_message
from qtrace.target.aio.model import Ending
from qtrace.target.arch_x86_64 import DWARF_NUMBERS, PRSTATUS_REGISTERS, SYSCALL_INSTRUCTION
from qtrace.target.core_file import CoreFile, build_id_in, no_core
from qtrace.target.elf import Elf
from qtrace.target.maps import Module
from qtrace.target.source import State
from qtrace.target.syscalls import sleeps, syscall_name


class CoreSource:
    """A core and its executable, checked against each other.

    Args:
        exe: the executable, None for the one at the path where it ran.

    Raises:
        TargetError: it is not the executable that the core is of, or not found.
    """

    def __init__(self, core: CoreFile, exe: Path | None = None) -> None:
        self.memory = core
        self._core = core
        self.space = CoreSpace(core)
        ran = core.program_path()
        if not core.registers or not ran:
            raise no_core(core.path, "it has no registers or no list of mapped files")
        path = exe or Path(ran)
        if not path.exists():
            raise TargetError(
                f"the executable {path} is not here", "name the one that crashed with --exe"
            )
        elf = Elf(path, Path(ran).name)
        in_core = self.space.build_id(ran)
        if in_core and elf.build_id and in_core != elf.build_id:
            raise TargetError(
                f"{core.path} is not a core of {path}: build id {in_core[:16]}... there, "
                f"{elf.build_id[:16]}... here",
                "name the executable that wrote the core with --exe",
            )
        self.checked = bool(in_core and elf.build_id)
        module = self.space.add(ran, elf)
        if module is None:
            raise no_core(core.path, f"{ran} is not mapped in it")
        self.binary = module
        self.program = Path(ran).name

    @property
    def pid(self) -> int:
        return self._core.pid or next(iter(self._core.registers))

    def threads(self) -> dict[int, str]:
        """The threads; a core does not have their names."""
        return dict.fromkeys(sorted(self._core.registers), "")

    def state(self, tid: int) -> State:
        """A thread's registers, and the system call they show it in."""
        values = dict(zip(PRSTATUS_REGISTERS, self._core.registers[tid], strict=True))
        known = {number: values[name] for name, number in DWARF_NUMBERS.items()}
        if not values["rip"]:
            # A kernel thread that bears the process's id (KVM's, vhost's).
            return State("", None, kernel=True)
        call = values["orig_rax"]
        in_call = call < 1 << 63 and self._code(values["rip"] - 2, 2) == SYSCALL_INSTRUCTION
        asleep = in_call and sleeps(values["rax"])
        return State(syscall_name(call, values["rsi"]) if asleep else "", known)

    def _code(self, address: int, size: int) -> bytes:
        """Code as the core has it, else as the file that was mapped there."""
        raw = self.memory.read(address, size)
        found = self.space.find(address) if len(raw) < size else None
        module = found[0] if found else None
        return raw if module is None else module.elf.read(address - module.bias, size)

    def stopped(self) -> bool:
        """A core shows a moment of a process that ran."""
        return False

    def ending(self) -> Ending | None:
        """The signal that it was written for, with the C library's last words."""
        return self._core.ending(self._abort_message())

    def _abort_message(self) -> str:
        ended = self._core.ending()
        registers = self._core.registers.get(ended.tid) if ended else None
        if registers is None:
            return ""
        # abort() raises the signal itself: the thread that it hit is in the C library.
        found = self.space.find(dict(zip(PRSTATUS_REGISTERS, registers, strict=True))["rip"])
        module = found[0] if found else None
        variable = module.symbols.address(ABORT_MESSAGE) if module else None
        if module is None or variable is None:
            return ""
        return read_abort_message(self.memory, variable + module.bias)

    def thread_pointers(self) -> dict[int, int]:
        index = PRSTATUS_REGISTERS.index("fs_base")
        return {tid: registers[index] for tid, registers in self._core.registers.items()}

    def pointer_guard(self) -> int | None:
        return guard_of_auxv(self.memory, self._core.auxv)

    def outer_tid(self, tid: int) -> int:
        return tid


class CoreSpace:
    """The files that were mapped, opened when an address leads there.

    Attributes:
        unmatched: files that are here, but are others than those that were mapped.
    """

    def __init__(self, core: CoreFile) -> None:
        self._core = core
        self._modules: dict[str, Module | None] = {}
        self.unmatched: set[str] = set()

    def refresh(self) -> None:
        """A core does not change."""

    def find(self, address: int) -> tuple[Module | None, str] | None:
        """As ``Space.find``."""
        file = self._core.file_at(address)
        if file is None:
            # Anonymous, as translated code.
            index = bisect.bisect_right(self._core._starts, address) - 1
            part = self._core.parts[index] if index >= 0 else None
            return (None, "") if part and part.start <= address < part.end else None
        if file.path not in self._modules:
            self._open(file.path)
        return self._modules[file.path], Path(file.path).name

    def _open(self, path: str) -> None:
        self._modules[path] = None
        try:
            elf = Elf(path)
        except QtraceError:
            return
        if self.build_id(path) not in ("", elf.build_id):
            self.unmatched.add(path)
            return
        self.add(path, elf)

    def add(self, path: str, elf: Elf) -> Module | None:
        """Take a file as the one that was mapped; None when it is not mapped."""
        for file in self._core.files:
            vaddr = elf.vaddr_of(file.offset) if file.path == path else None
            if vaddr is not None:
                self._core.trust(path, elf)
                self._modules[path] = Module(elf, file.start - vaddr)
                return self._modules[path]
        return None

    def build_id(self, path: str) -> str:
        """The build id of a mapped file as its header in the core has it; empty without one."""
        file = self._core.first_of(path)
        return build_id_in(self._core, file.start) if file else ""
