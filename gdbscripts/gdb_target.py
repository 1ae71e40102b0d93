"""The QEMU that gdb has before it, as the walkers of ``qtrace.qemu.aio`` want to see it.

Nothing in here writes to the target or calls a function in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import gdb

from qtrace.machine.arch_x86_64 import X86_64
from qtrace.machine.memory import PAGE
from qtrace.qemu.aio.instructions import Instruction, parse_att

ARCHITECTURE = "i386:x86-64"
# In every QEMU program's dynamic symbols, or else in its debug info.
PROOF = "aio_poll"
BUILD_ID = ".note.gnu.build-id"
# Read-only once the dynamic linker is done (PT_GNU_RELRO).
SETTLED = (".data.rel.ro", ".got", ".dynamic")


class GdbMemory:
    """Reads through gdb, which knows how to look into live processes and core files."""

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes, or fewer where the mapping ends; empty where there is none."""
        if not 0 <= address < 1 << 64 or size <= 0:
            return b""
        read = gdb.selected_inferior().read_memory
        try:
            return bytes(read(address, size))
        except (gdb.error, OverflowError):
            pass
        # gdb reads all or nothing: go on page by page, up to the one that is not there.
        found = b""
        while len(found) < size:
            at = address + len(found)
            try:
                found += bytes(read(at, min(size - len(found), PAGE - at % PAGE)))
            except (gdb.error, OverflowError):
                break
        return found


class GdbProgram:
    """The code of the program, by gdb's symbols and gdb's disassembler."""

    architecture = X86_64

    def __init__(self) -> None:
        self._architecture = gdb.newest_frame().architecture()

    def address(self, symbol: str) -> int | None:
        """The address of a function or variable, None when it has no symbol."""
        try:
            return int(gdb.parse_and_eval("(unsigned long)&" + symbol))
        except gdb.error:
            return None

    def instructions(self, address: int, count: int) -> list[Instruction]:
        """Up to ``count`` instructions in a row; fewer where the bytes are no code."""
        with file_code():
            found: list[dict[str, object]] = []
            while count > 0:
                # gdb gives nothing at all when the last of them cannot be read.
                try:
                    found = self._architecture.disassemble(address, count=count)
                    break
                except gdb.error:
                    count //= 2
        code = [parse_att(int(str(i["addr"])), int(str(i["length"])), str(i["asm"])) for i in found]
        bad = next((n for n, i in enumerate(code) if i.mnemonic == "(bad)"), len(code))
        return code[:bad]

    def is_variable(self, address: int) -> bool:
        """Not what the dynamic linker fills in."""
        settled = (self.sections().get(name, (0, 0)) for name in SETTLED)
        return not any(begin <= address < end for begin, end in settled)

    def sections(self) -> dict[str, tuple[int, int]]:
        """Start and end of the program's own sections (not the libraries'), by name."""
        listed = gdb.execute("info files", to_string=True)
        return {
            match[3]: (int(match[1], 16), int(match[2], 16))
            for match in re.finditer(r"^\s+(0x\w+) - (0x\w+) is (\S+)$", listed, re.MULTILINE)
        }


@contextmanager
def file_code() -> Iterator[None]:
    """Let gdb take code from the file and print it in the syntax that we read.

    In memory an eBPF probe replaces an instruction's first byte. A core file has neither code nor
    constants: gdb looks for them in the file of that path, which may be another one here.
    """
    with setting("trust-readonly-sections", "on"), setting("disassembly-flavor", "att"):
        yield


@contextmanager
def setting(name: str, value: str) -> Iterator[None]:
    """One of gdb's settings, changed for a while."""
    # Not gdb.with_parameter(), which came with gdb 12.
    before = gdb.parameter(name)
    shown = {True: "on", False: "off"}.get(before, before) if isinstance(before, bool) else before
    gdb.execute(f"set {name} {value}")
    try:
        yield
    finally:
        gdb.execute(f"set {name} {shown}")


@contextmanager
def selection_kept() -> Iterator[None]:
    """Give the user back the thread and frame that were selected."""
    thread, frame = gdb.selected_thread(), None
    with suppress(gdb.error):
        frame = gdb.selected_frame()
    try:
        yield
    finally:
        if thread is not None and thread.is_valid():
            thread.switch()
        if frame is not None and frame.is_valid():
            frame.select()


def require_target() -> None:
    """Raises gdb.GdbError, one line with the remedy, unless a stopped QEMU or a core is here."""
    thread = gdb.selected_thread()
    if gdb.selected_inferior().pid == 0 or thread is None:
        raise gdb.GdbError("no process and no core: attach PID, or start gdb QEMU CORE")
    if any(t.is_running() for t in gdb.selected_inferior().threads()):
        raise gdb.GdbError("the target is running: interrupt it first (Ctrl-C, or interrupt -a)")
    architecture = gdb.newest_frame().architecture().name()
    if architecture != ARCHITECTURE:
        raise gdb.GdbError("only x86-64 QEMUs can be read, this is " + architecture)
    if gdb.current_progspace().filename is None:
        raise gdb.GdbError(f"gdb does not know the program: {_remedy()}, then try again")
    if GdbProgram().address(PROOF) is None:
        raise gdb.GdbError(
            f"{gdb.current_progspace().filename} has no {PROOF}(): not a QEMU program, or one "
            "without any symbols (symbol-file its debug file)"
        )
    if not _is_the_program():
        raise gdb.GdbError(
            f"{gdb.current_progspace().filename} is another build than what ran here: "
            f"{_remedy()}, then try again"
        )


def _remedy() -> str:
    """The command that gives gdb the right file; a live process has its own, even if deleted."""
    pid = gdb.selected_inferior().pid
    return "file PATH-OF-THE-RIGHT-QEMU" if is_core() else f"file /proc/{pid}/exe"


def _is_the_program() -> bool:
    """Whether gdb's file is that of the process: with a wrong one all lists would look empty."""
    entry = re.search(r"Entry point: (0x\w+)", gdb.execute("info files", to_string=True))
    try:
        started = re.search(r"AT_ENTRY .*(0x\w+)$", gdb.execute("info auxv", to_string=True), re.M)
    except gdb.error:
        started = None
    if entry and started and int(entry[1], 16) != int(started[1], 16):
        return False
    start, end = GdbProgram().sections().get(BUILD_ID, (0, 0))
    in_memory = GdbMemory().read(start, end - start)
    with file_code():
        return in_memory == GdbMemory().read(start, end - start)


def is_core() -> bool:
    """Whether the target is a core file, which cannot run."""
    return "core dump file" in gdb.execute("info files", to_string=True)


def register(frame: gdb.Frame, name: str) -> int | None:
    """A frame's register as an unsigned number, None where it is not known."""
    try:
        return int(frame.read_register(name)) & (1 << 64) - 1
    except (gdb.error, ValueError):
        return None
