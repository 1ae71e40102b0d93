"""bpf(2) itself, for what libbcc has no function for."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence

# By machine: asm/unistd.h.
SYSCALL = {"x86_64": 321, "aarch64": 280}
# linux/bpf.h
MAP_CREATE, PROG_LOAD, LINK_CREATE = 0, 5, 28
MAP_TYPE_RINGBUF, PROG_TYPE_KPROBE = 27, 2
TRACE_UPROBE_MULTI = 48
# Zeros behind are the same as absent: what old and new kernels take.
ATTRIBUTE_BYTES = 72

# r0 = 0; exit
SMALLEST_PROGRAM = bytes([0xB7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0])

_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes) -> int:
    """The new file descriptor. Raises OSError."""
    number = SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    size = max(len(attributes), ATTRIBUTE_BYTES)
    union = ctypes.create_string_buffer(attributes, size)
    fd = _libc.syscall(ctypes.c_long(number), ctypes.c_int(command), union, ctypes.c_uint(size))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(fd)


def load_program(code: bytes, name: str = "", attach_type: int = 0) -> int:
    """Load a program for uprobes. ``attach_type`` is 0 for perf events. Raises OSError."""
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    return bpf(
        PROG_LOAD,
        struct.pack(
            "<IIQQIIQII16sII",
            PROG_TYPE_KPROBE,
            len(code) // 8,
            ctypes.addressof(instructions),
            ctypes.addressof(licence),
            *(0, 0, 0, 0, 0),  # no log, any kernel, no flags
            name.encode()[:15],
            0,
            attach_type,
        ),
    )


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
