"""bpf(2) itself: maps, programs. It takes no library, and no compiler."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from qtrace.host import locked_memory
from qtrace.machine.arch_aarch64 import AARCH64
from qtrace.machine.arch_x86_64 import X86_64

# By machine.
SYSCALL = {"x86_64": X86_64.call_number("bpf"), "aarch64": AARCH64.call_number("bpf")}
# linux/bpf.h
MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_NEXT_KEY, PROG_LOAD = 0, 1, 2, 3, 4, 5
MAP_LOOKUP_BATCH, LINK_CREATE = 24, 28
RAW_TRACEPOINT_OPEN = 17
MAP_TYPE_RINGBUF, PROG_TYPE_KPROBE, PROG_TYPE_RAW_TRACEPOINT = 27, 2, 17
TRACE_UPROBE_MULTI = 48
# What MAP_LOOKUP_BATCH takes of union bpf_attr: from, to, keys, values, how many, the map, flags.
BATCH = struct.Struct("<QQQQIIQQ")
# Zeros behind are the same as absent: what old and new kernels take.
ATTRIBUTE_BYTES = 72

# r0 = 0; exit
SMALLEST_PROGRAM = bytes([0xB7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0])

_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes) -> int:
    """What it returns: the new file descriptor, if it makes one. Raises OSError."""
    number = SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if _is_deadly():
        raise OSError(errno.EPERM, "a seccomp filter kills whoever calls bpf(2)")
    try:
        return _call(number, command, attributes)
    except PermissionError:
        if command not in (MAP_CREATE, PROG_LOAD) or not locked_memory.counts_here():
            raise
    with locked_memory.lifted():
        try:
            return _call(number, command, attributes)
        except PermissionError as error:
            limit = locked_memory.limit()
            if limit is None:
                raise
            raise PermissionError(
                errno.EPERM, f"refused, maybe by the limit of locked memory, {limit >> 10} KiB"
            ) from error


def _call(number: int, command: int, attributes: bytes) -> int:
    size = max(len(attributes), ATTRIBUTE_BYTES)
    union = ctypes.create_string_buffer(attributes, size)
    fd = _libc.syscall(ctypes.c_long(number), ctypes.c_int(command), union, ctypes.c_uint(size))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(fd)


def update_map(fd: int, key: bytes, value: bytes) -> None:
    """Set an entry. Raises OSError."""
    _entry(MAP_UPDATE, fd, key, ctypes.create_string_buffer(value, len(value)))


def map_entries(fd: int, key_size: int, value_size: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a hash map; one that is deleted meanwhile may be left out."""
    key, value = b"", ctypes.create_string_buffer(value_size)
    following = ctypes.create_string_buffer(key_size)
    try:
        while True:
            _entry(MAP_NEXT_KEY, fd, key, following)
            key = following.raw
            try:
                _entry(MAP_LOOKUP, fd, key, value)
            except FileNotFoundError:
                continue
            yield key, value.raw
    except FileNotFoundError:
        return


def delete_entry(fd: int, key: bytes) -> None:
    """Of a hash map; also one that is not there. Raises OSError."""
    buffer = ctypes.create_string_buffer(key, len(key))
    with suppress(FileNotFoundError):
        bpf(MAP_DELETE, struct.pack("<IIQ", fd, 0, ctypes.addressof(buffer)))


class MapReader:
    """All entries of a hash map by one system call.

    Args:
        count: how many it has room for.
    """

    def __init__(self, fd: int, key_size: int, value_size: int, count: int) -> None:
        self._fd, self._count = fd, count
        self._key_size, self._value_size = key_size, value_size
        self._keys = ctypes.create_string_buffer(key_size * count)
        self._values = ctypes.create_string_buffer(value_size * count)
        self._place = ctypes.create_string_buffer(max(key_size, 4))

    def read(self) -> Iterator[tuple[memoryview, memoryview]]:
        """Key and value of each, valid until they are read again. Raises OSError."""
        attributes = BATCH.pack(
            0, ctypes.addressof(self._place), ctypes.addressof(self._keys),
            ctypes.addressof(self._values), self._count, self._fd, 0, 0,
        )  # fmt: skip
        union = ctypes.create_string_buffer(attributes, BATCH.size)
        number = SYSCALL[platform.machine()]
        # The kernel says by ENOENT that these are all, and how many they are where they were asked.
        if _libc.syscall(
            ctypes.c_long(number), ctypes.c_int(MAP_LOOKUP_BATCH), union, ctypes.c_uint(BATCH.size)
        ) and (code := ctypes.get_errno()) != errno.ENOENT:  # fmt: skip
            raise OSError(code, os.strerror(code))
        keys, values = memoryview(self._keys), memoryview(self._values)
        for at in range(BATCH.unpack(union.raw)[4]):
            key = keys[at * self._key_size : (at + 1) * self._key_size]
            yield key, values[at * self._value_size : (at + 1) * self._value_size]


def _entry(command: int, fd: int, key: bytes, value: ctypes.Array[ctypes.c_char]) -> None:
    """A command on one entry of a map; without a key on the one before the first."""
    buffer = ctypes.create_string_buffer(key, len(key)) if key else None
    address = ctypes.addressof(buffer) if buffer is not None else 0
    bpf(command, struct.pack("<IIQQQ", fd, 0, address, ctypes.addressof(value), 0))


# bpf(2) with a command that there is not.
TRIAL = "import ctypes; ctypes.CDLL(None).syscall({}, 999, 0, 0)"


@cache
def _is_deadly() -> bool:
    """Whether a filter kills for it; another process finds out, where there is one."""
    if not has_seccomp_filter():
        return False
    trial = TRIAL.format(SYSCALL[platform.machine()])
    run = subprocess.run([sys.executable, "-I", "-S", "-c", trial], stdin=subprocess.DEVNULL)
    return run.returncode == -signal.SIGSYS


def has_seccomp_filter() -> bool:
    """Whether one is active in this process, as a container's is."""
    status = Path("/proc/self/status").read_text(errors="replace")
    match = re.search(r"^Seccomp:\s*(\d)", status, re.MULTILINE)
    return match is not None and match[1] != "0"


def load_program(
    code: bytes, name: str = "", attach_type: int = 0, kind: int = PROG_TYPE_KPROBE
) -> int:
    """Load a program, for uprobes unless it is of another kind. ``attach_type`` is 0 for perf
    events. Raises OSError."""
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    return bpf(
        PROG_LOAD,
        struct.pack(
            "<IIQQIIQII16sII",
            kind,
            len(code) // 8,
            ctypes.addressof(instructions),
            ctypes.addressof(licence),
            *(0, 0, 0, 0, 0),  # no log, any kernel, no flags
            name.encode()[:15],
            0,
            attach_type,
        ),
    )


def attach_raw_tracepoint(program: int, name: str) -> int:
    """Run a program of PROG_TYPE_RAW_TRACEPOINT there, for as long as what is returned is open.

    Raises OSError.
    """
    text = ctypes.create_string_buffer(name.encode())
    return bpf(RAW_TRACEPOINT_OPEN, struct.pack("<QI", ctypes.addressof(text), program))
