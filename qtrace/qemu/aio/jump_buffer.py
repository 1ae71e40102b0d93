"""The registers of a sleeping coroutine, from the jmp_buf that it left by."""

from __future__ import annotations

import struct

from qtrace.machine.arch_x86_64 import CALLEE_SAVED_NAMES
from qtrace.machine.memory import Memory, read_word

# glibc's jmp_buf on x86-64: the last two and rbp are mangled (PTR_MANGLE).
JMP_BUF = struct.Struct("<8Q")
ORDER = (*CALLEE_SAVED_NAMES, "rsp", "rip")
MANGLED = frozenset({"rbp", "rsp", "rip"})
AT_RANDOM = 25
GUARD_TLS = 0x30


def saved_registers(memory: Memory, co: int, env: int, guard: int) -> dict[str, int] | None:
    """A sleeping coroutine's registers by name, None when they cannot be read.

    Args:
        co: the Coroutine (which begins its CoroutineUContext).
        env: ``Layout.co_env``.
        guard: the process's pointer guard.
    """
    raw = memory.read(co + env, JMP_BUF.size)
    if len(raw) != JMP_BUF.size:
        return None
    values = JMP_BUF.unpack(raw)
    return {
        name: demangle(values[n], guard) if name in MANGLED else values[n]
        for n, name in enumerate(ORDER)
    }


def demangle(value: int, guard: int) -> int:
    """PTR_DEMANGLE: rotate right by 17, then xor with the guard."""
    return ((value >> 17) | (value << 47)) & 0xFFFFFFFFFFFFFFFF ^ guard


def guard_of_thread(memory: Memory, thread_pointer: int) -> int | None:
    """The pointer guard as each thread has it, at fs:0x30."""
    return read_word(memory, thread_pointer + GUARD_TLS)


def guard_of_auxv(memory: Memory, auxv: bytes) -> int | None:
    """The pointer guard from the kernel's random bytes: the second half of AT_RANDOM's.

    ``auxv``: /proc/PID/auxv, or a core's NT_AUXV.
    """
    for kind, value in struct.iter_unpack("<QQ", auxv[: len(auxv) // 16 * 16]):
        if kind == AT_RANDOM:
            return read_word(memory, value + 8)
    return None
