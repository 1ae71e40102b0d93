"""Inside gdb: let a stopped thread go on behind its breakpoint without a step.

See ``qtrace.gdb.pass_over`` for why. The registers are set by one PTRACE_SETREGS: whenever gdb is
killed, the thread has passed the instruction or it has not.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Any

import gdb

from qtrace.target.arch_x86_64 import PRSTATUS_REGISTERS

PTRACE_GETREGS, PTRACE_SETREGS = 12, 13
WORD = 0xFFFFFFFFFFFFFFFF
LAYOUT = struct.Struct(f"{len(PRSTATUS_REGISTERS)}Q")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def pass_over(
    tid: int,
    effect: dict[str, Any],
    read_word: Callable[[int], int],
    write: Callable[[int, bytes], None],
) -> None:
    """Give a stopped thread the effect of its next instruction.

    Args:
        effect: from ``qtrace.gdb.pass_over.describe``.
        read_word, write: of the target's memory.

    Raises:
        OSError: the thread is gone, or not gdb's to change; it has been left as it was.
    """
    buffer = ctypes.create_string_buffer(LAYOUT.size)
    _ptrace(PTRACE_GETREGS, tid, buffer)
    values = dict(zip(PRSTATUS_REGISTERS, LAYOUT.unpack(buffer.raw)))  # noqa: B905 (3.10)

    def value(of: Any) -> int:
        return values[of] if isinstance(of, str) else int(of)

    for register, source in effect.get("set", {}).items():
        values[register] = value(source)
    if "push" in effect:
        pushed = struct.pack("<Q", value(effect["push"]) & WORD)
        values["rsp"] -= 8
        # Below the stack pointer of a thread that calls or has just been called: nobody's yet.
        write(values["rsp"], pushed)
    values["rip"] = effect["next"]
    if values["rip"] is None:
        values["rip"] = read_word(values["rsp"])
        values["rsp"] += 8
    buffer.raw = LAYOUT.pack(*(values[name] for name in PRSTATUS_REGISTERS))
    _ptrace(PTRACE_SETREGS, tid, buffer)
    # gdb remembers the old ones until the thread runs; by this one it decides whether to step.
    gdb.execute(f"set var $rip = {values['rip']:#x}", to_string=True)


def _ptrace(request: int, tid: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
    if _libc.ptrace(request, tid, None, buffer):
        raise OSError(ctypes.get_errno(), "ptrace")
