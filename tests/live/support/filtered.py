"""A command below a seccomp filter that minds bpf(2) alone."""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence

# linux/seccomp.h
KILL, REFUSE, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
# linux/filter.h: a load of 32 bits of struct seccomp_data, skip where it is equal, return.
LOAD, SKIP, RETURN = 0x20, 0x15, 0x06
CALL, FIRST_ARGUMENT = 0, 16  # offsets into struct seccomp_data
BPF = 321
MAP_CREATE = 0

BECOMES = """
import ctypes, os, struct, sys
instructions = ctypes.create_string_buffer(bytes.fromhex(sys.argv[1]))
program = struct.pack("<HxxxxxxQ", len(sys.argv[1]) // 16, ctypes.addressof(instructions))
libc = ctypes.CDLL(None)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program):
    sys.exit("no filter")
os.execvp(sys.argv[2], sys.argv[2:])
"""


def killed_for_bpf(command: Sequence[str]) -> list[str]:
    """Whoever calls bpf(2) ends."""
    return _filtered(command, (SKIP, 0, 1, BPF), (RETURN, 0, 0, KILL))


def refused_maps(command: Sequence[str], errno: int) -> list[str]:
    """Every map is refused, as one of a kind that the kernel does not know."""
    return _filtered(
        command, (SKIP, 0, 3, BPF), (LOAD, 0, 0, FIRST_ARGUMENT), (SKIP, 0, 1, MAP_CREATE),
        (RETURN, 0, 0, REFUSE | errno),
    )  # fmt: skip


def _filtered(command: Sequence[str], *instructions: tuple[int, int, int, int]) -> list[str]:
    whole = ((LOAD, 0, 0, CALL), *instructions, (RETURN, 0, 0, ALLOW))
    code = b"".join(struct.pack("<HBBI", *instruction) for instruction in whole)
    return [sys.executable, "-c", BECOMES, code.hex(), *command]
