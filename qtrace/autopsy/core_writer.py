"""A core file of a process that lives, as gdb and ``qtrace inspect --core`` read it.

Made by hand, as no library writes one. Each mapping is in it as segments: pages that were taken
have their contents there, all others have none, as the kernel's own cores leave out what is not
dumped.
"""

from __future__ import annotations

import bisect
import itertools
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from qtrace.machine.arch_x86_64 import PRSTATUS_REGISTERS, SYSCALL_ARGUMENTS
from qtrace.machine.memory import PAGE
from qtrace.process.core_file import PRSTATUS_PID, PRSTATUS_REGS
from qtrace.process.maps import Mapping as Mapped

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
NHDR = struct.Struct("<III")
IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)
ET_CORE, EM_X86_64, EV_CURRENT = 4, 62, 1
PT_LOAD, PT_NOTE = 1, 4
PF_X, PF_W, PF_R = 1, 2, 4
NT_PRSTATUS, NT_PRPSINFO, NT_AUXV, NT_FILE = 1, 3, 6, 0x46494C45
# struct elf_prstatus with its last member, pr_fpvalid, and padding.
PRSTATUS = 336
# struct elf_prpsinfo: pr_pid at 24, pr_fname at 40, pr_psargs (its command line) at 56.
PRPSINFO, PSINFO_PID, PSINFO_NAME = 136, 24, 40
NAME_BYTES = 15
# User space of x86-64 with four levels of page tables ends there; [vsyscall] lies above.
USER_END = 1 << 47
# What a signal finds in rax of a thread that sleeps in a system call; a 64-bit program's selectors.
ERESTARTSYS = (1 << 64) - 512
USER_CS, USER_SS = 0x33, 0x2B


@dataclass(frozen=True)
class Asleep:
    """A thread that sleeps in the kernel: what is known of its registers.

    Attributes:
        call, arguments: the system call that it is in; -1 and empty of one in none.
        thread_pointer, frame_pointer: fs_base and rbp, 0 where they are not known.
    """

    tid: int
    pc: int
    stack_pointer: int
    call: int = -1
    arguments: tuple[int, ...] = ()
    thread_pointer: int = 0
    frame_pointer: int = 0

    @property
    def registers(self) -> dict[str, int]:
        """As a debugger that stops it would find them; those that nobody can tell are 0."""
        found = dict.fromkeys(PRSTATUS_REGISTERS, 0)
        found |= {"rip": self.pc, "rsp": self.stack_pointer, "fs_base": self.thread_pointer}
        found["rbp"] = self.frame_pointer
        found |= {"cs": USER_CS, "ss": USER_SS, "orig_rax": self.call & (1 << 64) - 1}
        if self.call >= 0:
            found["rax"] = ERESTARTSYS
        return found | dict(zip(SYSCALL_ARGUMENTS, self.arguments, strict=False))


def core_file(
    pid: int,
    program: str,
    threads: Sequence[Asleep],
    mappings: Sequence[Mapped],
    pages: Mapping[int, bytes],
    auxv: bytes,
) -> bytes:
    """All of it.

    Args:
        threads: a debugger takes the first one as the one to begin with.
        pages: those that were taken, by number.
        auxv: of /proc/PID/auxv.
    """
    notes = b"".join(_status(thread) for thread in threads)
    notes += _about(pid, program) + _note(NT_AUXV, auxv) + _note(NT_FILE, _files(mappings))
    segments = list(_segments(mappings, pages))
    count = 1 + len(segments)
    at = EHDR.size + count * PHDR.size
    headers = [PHDR.pack(PT_NOTE, PF_R, at, 0, 0, len(notes), len(notes), 4)]
    padding = -(at + len(notes)) % PAGE
    body = [notes, bytes(padding)]
    at += len(notes) + padding
    for start, end, flags, data in segments:
        size = end - start
        headers.append(PHDR.pack(PT_LOAD, flags, at, start, 0, len(data), size, PAGE))
        body.append(data)
        at += len(data)
    header = EHDR.pack(
        IDENT, ET_CORE, EM_X86_64, EV_CURRENT, 0, EHDR.size, 0, 0, EHDR.size, PHDR.size, count,
        0, 0, 0,
    )  # fmt: skip
    return b"".join([header, *headers, *body])


def _segments(
    mappings: Iterable[Mapped], pages: Mapping[int, bytes]
) -> Iterator[tuple[int, int, int, bytes]]:
    """Begin, end, flags and contents of each."""
    numbers = sorted(pages)
    for one in mappings:
        if one.start >= USER_END:
            continue
        flags = sum(
            bit for letter, bit in (("r", PF_R), ("w", PF_W), ("x", PF_X)) if letter in one.perms
        )
        at = one.start
        low = bisect.bisect_left(numbers, one.start // PAGE)
        own = numbers[low : bisect.bisect_left(numbers, one.end // PAGE)]
        # Neighbours have the same distance from their places in the list.
        for _, run in itertools.groupby(enumerate(own), lambda pair: pair[1] - pair[0]):
            taken = [number for _place, number in run]
            data = b"".join(pages[number] for number in taken)
            start = taken[0] * PAGE
            if at < start:
                yield at, start, flags, b""
            at = start + len(data)
            yield start, at, flags, data
        if at < one.end:
            yield at, one.end, flags, b""


def _files(mappings: Iterable[Mapped]) -> bytes:
    """The descriptor of NT_FILE: which file is mapped where."""
    files = [one for one in mappings if one.path.startswith("/")]
    rows = (struct.pack("<3Q", one.start, one.end, one.offset // PAGE) for one in files)
    names = (one.path.encode("utf-8", "surrogateescape") + b"\0" for one in files)
    return struct.pack("<2Q", len(files), PAGE) + b"".join(rows) + b"".join(names)


def _status(thread: Asleep) -> bytes:
    data = bytearray(PRSTATUS)
    struct.pack_into("<i", data, PRSTATUS_PID, thread.tid)
    struct.pack_into(
        f"<{len(PRSTATUS_REGISTERS)}Q", data, PRSTATUS_REGS, *thread.registers.values()
    )
    return _note(NT_PRSTATUS, bytes(data))


def _about(pid: int, program: str) -> bytes:
    """Without its command line, where secrets may stand."""
    data = bytearray(PRPSINFO)
    struct.pack_into("<i", data, PSINFO_PID, pid)
    struct.pack_into(
        f"{NAME_BYTES}s", data, PSINFO_NAME, program.encode("utf-8", "surrogateescape")
    )
    return _note(NT_PRPSINFO, bytes(data))


def _note(kind: int, data: bytes) -> bytes:
    name = b"CORE\0\0\0\0"
    return NHDR.pack(5, len(data), kind) + name + data + bytes(-len(data) % 4)
