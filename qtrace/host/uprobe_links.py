"""Links for uprobes: one for many places of a file, in one process. They need no CAP_SYS_ADMIN, and
cost the process nothing but its hits.

The kernel has them since 6.6. Until 46ba0e49b642 (Linux 6.10; some have taken it over into earlier
ones) a link's pid meant one thread, and the hits of others were passed over without a word. So
where the version does not promise it, it is tried on a function of ours.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import struct
from collections.abc import Sequence
from functools import cache

from qtrace.host.bpf_syscall import (
    LINK_CREATE,
    MAP_CREATE,
    SMALLEST_PROGRAM,
    TRACE_UPROBE_MULTI,
    bpf,
    load_program,
    map_entries,
)
from qtrace.host.own_function import OwnFunction

LINKS_SINCE = (6, 10)
MAP_TYPE_ARRAY = 2
INSTRUCTION, INDEX, WORD = struct.Struct("<BBhi"), struct.Struct("<I"), struct.Struct("<Q")
# ld_imm64 of the place of a map's value (BPF_PSEUDO_MAP_VALUE, Linux 5.2), into r1.
LD_IMM64, VALUE_TO_R1 = 0x18, 0x21


def link_uprobes(program: int, path: bytes, offsets: Sequence[int], pid: int) -> int:
    """One link for many places of a file, in one process: its file descriptor. Raises OSError.

    Args:
        program: a function that was loaded for TRACE_UPROBE_MULTI.
        offsets: into the file.
    """
    name = ctypes.create_string_buffer(path)
    places = (ctypes.c_uint64 * len(offsets))(*offsets)
    return bpf(
        LINK_CREATE,
        struct.pack(
            "<IIIIQQQQIII",
            program,
            0,
            TRACE_UPROBE_MULTI,
            0,
            ctypes.addressof(name),
            ctypes.addressof(places),
            *(0, 0),  # no reference counters, no cookies
            len(offsets),
            0,
            pid,
        ),
    )


@cache
def links_work() -> bool:
    """Whether this kernel has links for uprobes that mean whole processes."""
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    promised = release is not None and (int(release[1]), int(release[2])) >= LINKS_SINCE
    try:
        if promised:
            os.close(load_program(SMALLEST_PROGRAM, attach_type=TRACE_UPROBE_MULTI))
            return True
        return hits_of_other_threads(os.getpid())
    except PermissionError:
        # Whoever may not try it has to believe the version.
        return promised
    except OSError:
        return False


def hits_of_other_threads(pid: int) -> bool:
    """Whether a link for this process tells of a hit by another thread than its first one.

    Args:
        pid: this process's id.

    Raises OSError: there are no links, or they are refused.
    """
    function = OwnFunction()
    fds: list[int] = []
    try:
        fds.append(bpf(MAP_CREATE, struct.pack("<4I", MAP_TYPE_ARRAY, INDEX.size, WORD.size, 1)))
        code = b"".join(
            INSTRUCTION.pack(*instruction)
            for instruction in (
                (LD_IMM64, VALUE_TO_R1, 0, fds[0]),
                (0, 0, 0, 0),
                (0xB7, 0x02, 0, 1),  # r2 = 1
                (0x7B, 0x21, 0, 0),  # *(u64 *)r1 = r2
            )
        )
        fds.append(load_program(code + SMALLEST_PROGRAM, attach_type=TRACE_UPROBE_MULTI))
        fds.append(link_uprobes(fds[1], function.path.encode(), [0], pid))
        function.call_in_thread()
        return any(WORD.unpack(value)[0] for _key, value in map_entries(fds[0], 4, WORD.size))
    finally:
        for fd in reversed(fds):
            os.close(fd)
        function.close()
