"""Inside gdb: let a stopped thread go on behind its breakpoint without a step.

See ``qtrace.gdb.instruction_effect`` for why. The registers are set by one PTRACE_SETREGS: whenever
gdb is killed, the thread has passed the instruction or it has not.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import gdb

from qtrace.machine.ptrace import get_registers, set_registers

WORD = 0xFFFFFFFFFFFFFFFF


def pass_over(
    tid: int,
    effect: dict[str, Any],
    read_word: Callable[[int], int],
    write: Callable[[int, bytes], None],
) -> None:
    """Give a stopped thread the effect of its next instruction.

    Args:
        effect: from ``qtrace.gdb.instruction_effect.describe``.
        read_word, write: of the target's memory.

    Raises:
        OSError: the thread is gone, or not gdb's to change; it has been left as it was.
    """
    values = get_registers(tid)

    def value(of: Any) -> int:
        return values[of] if isinstance(of, str) else int(of)

    for register, source in effect.get("set", {}).items():
        values[register] = value(source)
    if "push" in effect:
        pushed = struct.pack("<Q", value(effect["push"]) & WORD)
        values["rsp"] -= 8
        # Below the stack pointer of a thread that calls or has just been called: nobody's yet.
        write(values["rsp"], pushed)
    if effect["next"] is None:
        values["rip"] = read_word(values["rsp"])
        values["rsp"] += 8
    else:
        values["rip"] = effect["next"]
    set_registers(tid, values)
    # gdb remembers the old ones until the thread runs; by this one it decides whether to step.
    gdb.execute(f"set var $rip = {values['rip']:#x}", to_string=True)
