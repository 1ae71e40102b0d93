"""The registers of a sleeping coroutine, from the jmp_buf that it left by."""

from __future__ import annotations

import struct

from qtrace.machine.architecture import Architecture
from qtrace.machine.memory import Memory, read_word

AT_RANDOM = 25
GUARD_TLS = 0x30


def saved_registers(
    memory: Memory, co: int, env: int, guard: int, architecture: Architecture
) -> dict[str, int] | None:
    """A sleeping coroutine's registers by name, None when they cannot be read.

    Args:
        co: the Coroutine (which begins its CoroutineUContext).
        env: ``Layout.co_env``.
        guard: the process's pointer guard.
    """
    names, mangled = architecture.jump_buffer, architecture.mangled
    raw = memory.read(co + env, 8 * len(names))
    if len(raw) != 8 * len(names):
        return None
    values = struct.unpack(f"<{len(names)}Q", raw)
    return {
        name: architecture.demangle(values[n], guard) if name in mangled else values[n]
        for n, name in enumerate(names)
        if name
    }


def guard_of_thread(memory: Memory, thread_pointer: int) -> int | None:
    """The pointer guard as each thread of an x86-64 process has it, at fs:0x30."""
    return read_word(memory, thread_pointer + GUARD_TLS)


def guard_of_auxv(memory: Memory, auxv: bytes) -> int | None:
    """The pointer guard from the kernel's random bytes: the second half of AT_RANDOM's.

    ``auxv``: /proc/PID/auxv, or a core's NT_AUXV.
    """
    for kind, value in struct.iter_unpack("<QQ", auxv[: len(auxv) // 16 * 16]):
        if kind == AT_RANDOM:
            return read_word(memory, value + 8)
    return None
