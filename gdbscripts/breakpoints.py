"""``aio break``: stop where a bottom half is scheduled, or where it runs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import gdb

from qtrace.gdbscripts.call_sites import CallSites, Section
from qtrace.gdbscripts.command import AioCommand
from qtrace.gdbscripts.gdb_look import layout
from qtrace.gdbscripts.gdb_stacks import symbol_at
from qtrace.gdbscripts.gdb_target import GdbMemory, GdbProgram, file_code, is_core, register
from qtrace.gdbscripts.tables import say
from qtrace.qemu.aio.walk import AioReader, Missing

INT3 = b"\xcc"
RUN = "--run"

_call_sites: dict[tuple[str, int], CallSites] = {}


class Break(AioCommand):
    """Stop where a bottom half is scheduled, or with --run where it runs.

    aio break NAME [--run]

    The breakpoints stand on the calls that schedule just this one, or on its own function:
    no other code is slowed down. They are ordinary ones: info breakpoints, delete.
    Each time one is hit, a line tells the thread and the AioContext.

    As with any breakpoint, end gdb with detach or quit while they exist; a gdb that is killed
    leaves them in QEMU's code.
    """

    name = "break"
    arguments = "NAME [--run]"

    def candidates(self, words: list[str]) -> Iterable[str]:
        wanted = [] if [w for w in words if w != RUN] else sorted(_sites().names())
        return wanted + ([] if RUN in words else [RUN])

    def run(self, arguments: list[str]) -> None:
        names = [word for word in arguments if word != RUN]
        if len(names) != 1 or names[0].startswith("-"):
            raise self.usage()
        if is_core():
            raise gdb.GdbError("a core file cannot run, so that nothing would stop in it")
        where = _callbacks(names[0]) if RUN in arguments else _schedules(names[0])
        for address in where:
            _place(names[0], address, RUN in arguments)


class Scheduled(gdb.Breakpoint):
    """On a call: the arguments are in their registers, rdi the context."""

    def __init__(self, name: str, address: int, entered: bool) -> None:
        self._name = name
        self._address = address
        self._entered = entered
        super().__init__(f"*{address:#x}")

    def stop(self) -> bool:
        frame = gdb.newest_frame()
        ctx = register(frame, "rdi") if self._entered else None
        into = f" into {_context_name(ctx)}" if ctx else ""
        say(f"{self._name} is scheduled{into} by {_thread()}")
        return True


class Running(gdb.Breakpoint):
    """At the start of a bottom half's function."""

    def __init__(self, name: str, address: int, entered: bool) -> None:
        self._name = name
        super().__init__(f"*{address:#x}")

    def stop(self) -> bool:
        say(f"{self._name} runs on {_thread()}")
        return True


def _place(name: str, address: int, run: bool) -> None:
    kind = Running if run else Scheduled
    if not _probed(address):
        kind(name, address, True)
        return
    # An eBPF probe sits there and takes the trap: gdb's breakpoint would never be seen.
    first = GdbProgram().instructions(address, 1)
    if not first or first[0].mnemonic == "jmp":
        raise gdb.GdbError(f"an eBPF probe sits on {address:#x}: end qtrace attach first")
    say(f"an eBPF probe sits on {address:#x}: stopping one instruction later")
    kind(name, address + first[0].size, False)


def _schedules(name: str) -> list[int]:
    sites = _sites().of(name)
    where = [site.address for site in sites if site.schedules]
    if where:
        return where
    if sites:
        raise gdb.GdbError(
            f"{name} is scheduled by qemu_bh_schedule(), as many others are, so that no place in "
            f"the code is its own; aio break {name} {RUN} stops where it runs"
        )
    raise _unknown(name)


def _callbacks(name: str) -> list[int]:
    sites = _sites().of(name)
    where = sorted({site.callback for site in sites if site.callback})
    # With debug info the name may be a function's.
    address = None if where else GdbProgram().address(name)
    if address is not None and symbol_at(address) == (name, 0):
        where = [address]
    if where:
        return where
    if sites:
        raise gdb.GdbError(f"the code passes {name}'s function in a variable: nothing to stop at")
    raise _unknown(name)


def _unknown(name: str) -> gdb.GdbError:
    known = _sites().names()
    similar = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {similar[0]}?" if similar else "; aio break <TAB> lists them"
    return gdb.GdbError(f"none of this QEMU's {len(known)} bottom halves is called {name}{hint}")


def _sites() -> CallSites:
    """The call sites of the program, searched for once."""
    program = GdbProgram()
    sections = program.sections()
    if ".text" not in sections or ".rodata" not in sections:
        raise gdb.GdbError("the program's file has no section headers to find code and names by")
    key = (str(gdb.current_progspace().filename), sections[".text"][0])
    if key not in _call_sites:
        with file_code():
            code, strings = (_section(sections[name]) for name in (".text", ".rodata"))
            _call_sites[key] = CallSites(program, code, strings)
    return _call_sites[key]


def _section(extent: tuple[int, int]) -> Section:
    start, end = extent
    return Section(start, GdbMemory().read(start, end - start))


def _probed(address: int) -> bool:
    """Whether a uprobe has put its int3 there (gdb hides its own breakpoints when it reads)."""
    with file_code():
        in_file = GdbMemory().read(address, 1)
    return GdbMemory().read(address, 1) == INT3 != in_file


def _context_name(ctx: int) -> str:
    """A context's name without a look at any thread: gdb must not switch them in a stop()."""
    reader = AioReader(GdbMemory(), layout())
    try:
        names = {reader.main(): "main", reader.iohandler(): "iohandler"}
    except Missing:
        names = {}
    iothread = reader.iothread_id(ctx)
    return names.get(ctx) or (f"iothread:{iothread}" if iothread else f"{ctx:#x}")


def _thread() -> str:
    thread = gdb.selected_thread()
    return f"{thread.ptid[1]} ({thread.name})" if thread.name else str(thread.ptid[1])
