"""A core file and its executable as the source of looks."""

from __future__ import annotations

import bisect
from pathlib import Path

from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.errors import QtraceError, TargetError
from qtrace.machine.abort_message import ABORT_MESSAGE, read_abort_message
from qtrace.machine.memory import PAGE
from qtrace.machine.syscalls import syscall_name
from qtrace.process.build_ids import build_id_at, headers_at
from qtrace.process.core_file import CoreFile, no_core
from qtrace.process.look_source import State
from qtrace.process.maps import NO_FILES
from qtrace.process.sysroot import Sysroot
from qtrace.qemu.aio.jump_buffer import guard_of_auxv
from qtrace.qemu.aio.model import Ending


class CoreSource:
    """A core and its executable, checked against each other.

    Args:
        exe: the executable, None for the one at the path where it ran.
        sysroot: the folder below which its files lie, None where they lie as on this machine.

    Raises:
        TargetError: it is not the executable that the core is of, or not found.
    """

    def __init__(
        self, core: CoreFile, exe: Path | None = None, sysroot: Path | None = None
    ) -> None:
        self.memory = core
        self._core = core
        ran = core.program_path()
        if not core.registers or not ran:
            raise no_core(core.path, "it has no registers or no list of mapped files")
        places = Sysroot(sysroot, exe, ran)
        self.space = CoreSpace(core, places)
        elf = self._executable(places.places(str(exe or ran)), ran, exe)
        self.checked = self.space.is_same(ran, elf) is not None
        module = self.space.add(ran, elf)
        if module is None:
            raise no_core(core.path, f"{ran} is not mapped in it")
        self.binary = module
        self.program = Path(ran).name

    def _executable(self, places: list[Path], ran: str, exe: Path | None) -> Elf:
        if not places:
            raise TargetError(
                f"the executable {exe or ran} is not here",
                "name the one that crashed with --exe, or the folder of its files with --sysroot",
            )
        others = []
        for place in places:
            elf = Elf(place, Path(ran).name)
            if self.space.is_same(ran, elf) is not False:
                return elf
            others.append(elf)
        in_core = self.space.build_id(ran)
        raise TargetError(
            f"{self._core.path} is not a core of {others[0].path}: build id {in_core[:16]}... "
            f"there, {others[0].build_id[:16]}... here",
            "name the executable that wrote the core with --exe, or the folder of its files with "
            "--sysroot",
        )

    @property
    def pid(self) -> int:
        return self._core.pid or next(iter(self._core.registers))

    def threads(self) -> dict[int, str]:
        """The threads; a core does not have their names."""
        return dict.fromkeys(sorted(self._core.registers), "")

    def state(self, tid: int) -> State:
        """A thread's registers, and the system call they show it in."""
        machine = self._core.architecture
        values = dict(zip(machine.prstatus, self._core.registers[tid], strict=True))
        known = {number: values[name] for name, number in machine.numbers.items()}
        if not values[machine.pc_name]:
            # A kernel thread that bears the process's id (KVM's, vhost's).
            return State("", None, kernel=True)
        call = machine.sleeps_in(values, self._code)
        if call is None:
            return State("", known)
        name = syscall_name(call.number, call.arguments[1], machine.system_calls)
        return State(name, known, arguments=call.arguments)

    def _code(self, address: int, size: int) -> bytes:
        """Code as the core has it, else as the file that was mapped there."""
        raw = self.memory.read(address, size)
        found = self.space.find(address) if len(raw) < size else None
        module = found[0] if found else None
        return raw if module is None else module.elf.read(address - module.bias, size)

    def held(self, tid: int) -> str:
        """A core shows a moment of a process that ran."""
        return ""

    def ending(self) -> Ending | None:
        """The signal that it was written for, with the C library's last words."""
        return self._core.ending(self._abort_message())

    def _abort_message(self) -> str:
        ended = self._core.ending()
        registers = self._core.registers.get(ended.tid) if ended else None
        if registers is None:
            return ""
        # abort() raises the signal itself: the thread that it hit is in the C library.
        pc = registers[self._core.architecture.prstatus.index(self._core.architecture.pc_name)]
        found = self.space.find(pc)
        module = found[0] if found else None
        variable = module.symbols.address(ABORT_MESSAGE) if module else None
        if module is None or variable is None:
            return ""
        return read_abort_message(self.memory, variable + module.bias)

    def thread_pointers(self) -> dict[int, int]:
        return self._core.thread_pointers

    def pointer_guard(self) -> int | None:
        return guard_of_auxv(self.memory, self._core.auxv)

    def guarded(self) -> list[tuple[int, int]]:
        """As ``LookSource.guarded``. gcore leaves out what nobody may read: the page is taken to
        lie below each mapping that may be written, which may be several segments."""
        found: list[tuple[int, int]] = []
        for part in self._core.parts:
            if part.writable and found and found[-1][1] == part.start:
                found[-1] = (found[-1][0], part.end)
            elif part.writable:
                found.append((part.start - PAGE, part.end))
        return found

    def outer_tid(self, tid: int) -> int:
        return tid


class CoreSpace:
    """The files that were mapped, opened when an address leads there.

    Attributes:
        absent: those that are needed and not here, or not to be trusted, in words.
    """

    def __init__(self, core: CoreFile, places: Sysroot) -> None:
        self._core = core
        self._places = places
        self._modules: dict[str, Module | None] = {}
        self.absent: set[str] = set()

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
        if file.path.startswith(NO_FILES):
            return None, Path(file.path).name
        if file.path not in self._modules:
            self._open(file.path)
        return self._modules[file.path], Path(file.path).name

    def _open(self, path: str) -> None:
        """Take the first file of that path that is the one that was mapped."""
        self._modules[path] = None
        others = False
        for place in self._places.places(path):
            try:
                elf = Elf(place, Path(path).name)
            except QtraceError:
                continue
            same = self.is_same(path, elf)
            if same is not False and self.add(path, elf) is not None:
                if same is None:
                    self.absent.add(f"whether {place} is what was mapped cannot be told")
                return
            others = True
        self.absent.add(f"{path} is another build here" if others else f"{path} is not here")

    def add(self, path: str, elf: Elf) -> Module | None:
        """Take a file as the one that was mapped; None when it is not mapped."""
        for file in self._core.files:
            vaddr = elf.vaddr_of(file.offset) if file.path == path else None
            if vaddr is not None:
                self._core.trust(path, elf)
                self._modules[path] = Module(elf, file.start - vaddr)
                return self._modules[path]
        return None

    def is_same(self, path: str, elf: Elf) -> bool | None:
        """Whether a file is the one that was mapped: by its build id, else by its headers; None
        where the core has neither."""
        in_core = self.build_id(path)
        if in_core and elf.build_id:
            return in_core == elf.build_id
        file = self._core.first_of(path)
        headers = headers_at(self._core, file.start) if file else b""
        return elf.data[: len(headers)] == headers if headers else None

    def build_id(self, path: str) -> str:
        """The build id of a mapped file as its header in the core has it; empty without one."""
        file = self._core.first_of(path)
        return build_id_at(self._core, file.start) if file else ""
