"""What a thread waits for in a system call, as its arguments tell: descriptors, paths, a child.

x86-64 Linux; formats of poll(2), select(2), io_submit(2), connect(2).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from qtrace.machine.memory import Memory

# Calls whose first argument is the descriptor that they wait for, by what they do to it.
READING = frozenset({
    "read", "pread64", "readv", "preadv", "preadv2", "recvfrom", "recvmsg", "recvmmsg", "accept",
    "accept4",
})  # fmt: skip
WRITING = frozenset({
    "write", "pwrite64", "writev", "pwritev", "pwritev2", "sendto", "sendmsg", "sendmmsg",
    "connect",
})  # fmt: skip
OF_DESCRIPTOR = frozenset({
    "fstat", "lseek", "ioctl", "fsync", "fdatasync", "ftruncate", "fallocate", "flock", "fcntl",
    "getdents64", "fstatfs", "sync_file_range", "syncfs", "fadvise64", "fchmod", "fchown",
    "shutdown", "io_uring_enter", "close_range", "fgetxattr", "fsetxattr", "readahead",
})  # fmt: skip
# Calls of two descriptors: where the reading one stands, and the writing one.
COPYING = {"splice": (0, 2), "sendfile": (1, 0), "copy_file_range": (0, 2), "tee": (0, 1)}
# Calls whose argument of this number is a path.
OF_PATH = {
    **dict.fromkeys((
        "open", "stat", "lstat", "access", "readlink", "unlink", "rename", "mkdir", "rmdir",
        "truncate", "statfs", "chmod", "chown", "lchown", "getxattr", "setxattr", "lgetxattr",
        "mknod", "chdir", "creat", "execve", "utime", "utimes",
    ), 0),
    **dict.fromkeys((
        "openat", "openat2", "newfstatat", "statx", "unlinkat", "readlinkat", "faccessat",
        "faccessat2", "mkdirat", "renameat", "renameat2", "fchmodat", "fchownat", "mknodat",
        "utimensat", "name_to_handle_at", "execveat",
    ), 1),
}  # fmt: skip
AT_FDCWD = -100
LONGEST_PATH = 4096
POLLFD, POLLIN, POLLOUT = struct.Struct("<ihh"), 1, 4
EPOLLS = frozenset({"epoll_wait", "epoll_pwait", "epoll_pwait2"})
# struct iocb: the opcode (IOCB_CMD_PWRITE and PWRITEV write), and the descriptor.
IOCB, IOCB_WRITES = struct.Struct("<16xHhI"), (1, 8)
# Of a call that waits for very many, so many are read.
MOST = 64


@dataclass(frozen=True)
class Descriptor:
    """One that a call waits for: to write to it, to read from it, or either (None)."""

    fd: int
    writes: bool | None = None
    # Of connect(2): the path of a unix socket, empty for others.
    connects_to: str = ""


@dataclass(frozen=True)
class Path:
    """A path that a call looks up; ``dirfd`` None: from the working directory."""

    path: str
    dirfd: int | None


@dataclass(frozen=True)
class Epoll:
    """A set of descriptors that the kernel keeps."""

    fd: int


@dataclass(frozen=True)
class Child:
    """A child of the process, 0 for any."""

    pid: int


def waited_for(
    memory: Memory, call: str, arguments: tuple[int, ...]
) -> list[Descriptor | Path | Epoll | Child]:
    """What a call waits for, in the order of its arguments; empty where they do not tell.

    Args:
        call: its name, as in ``Thread.blocked_in``.
    """
    if len(arguments) < 6:
        return []
    first = arguments[0] & 0xFFFFFFFF
    if call == "connect":
        return [Descriptor(first, True, _unix_path(memory, arguments[1], arguments[2]))]
    if call in READING or call in WRITING or call in OF_DESCRIPTOR:
        writes = None if call in OF_DESCRIPTOR else call in WRITING
        return [Descriptor(first, writes)]
    if call in COPYING:
        source, target = (arguments[at] & 0xFFFFFFFF for at in COPYING[call])
        return [Descriptor(source, False), Descriptor(target, True)]
    if call in OF_PATH:
        return _path(memory, arguments, OF_PATH[call])
    if call in ("poll", "ppoll"):
        return list(_polled(memory, arguments[0], arguments[1]))
    if call in ("select", "pselect6"):
        return list(_selected(memory, arguments))
    if call in EPOLLS:
        return [Epoll(first)]
    if call == "io_submit":
        return list(_submitted(memory, arguments[1], arguments[2]))
    if call == "wait4":
        return [Child(max(_signed(arguments[0]), 0))]
    if call == "waitid":
        return [Child(arguments[1] & 0xFFFFFFFF if arguments[0] == os.P_PID else 0)]
    return []


def _path(
    memory: Memory, arguments: tuple[int, ...], at: int
) -> list[Descriptor | Path | Epoll | Child]:
    raw = memory.read(arguments[at], LONGEST_PATH)
    found = raw.partition(b"\0")[0]
    dirfd = _signed(arguments[0]) if at else AT_FDCWD
    if not found:
        # AT_EMPTY_PATH: fstat(3) of glibc from 2.33 on.
        return [Descriptor(dirfd)] if raw and dirfd >= 0 else []
    path = found.decode("utf-8", "surrogateescape")
    return [Path(path, dirfd if dirfd >= 0 else None)]


def _polled(memory: Memory, address: int, count: int) -> Iterator[Descriptor]:
    raw = memory.read(address, POLLFD.size * min(count, MOST))
    for fd, events, _got in POLLFD.iter_unpack(raw[: len(raw) // POLLFD.size * POLLFD.size]):
        if fd >= 0:
            yield Descriptor(fd, _direction(bool(events & POLLIN), bool(events & POLLOUT)))


def _selected(memory: Memory, arguments: tuple[int, ...]) -> Iterator[Descriptor]:
    count = min(arguments[0], 1024)
    sets = [memory.read(at, (count + 7) // 8) if at else b"" for at in arguments[1:3]]
    reads, writes = (int.from_bytes(raw, "little") for raw in sets)
    for fd in range(count):
        if (reads | writes) >> fd & 1:
            yield Descriptor(fd, _direction(bool(reads >> fd & 1), bool(writes >> fd & 1)))


def _submitted(memory: Memory, count: int, address: int) -> Iterator[Descriptor]:
    """The files of asynchronous I/O that is being handed over, each once."""
    raw = memory.read(address, 8 * min(count, MOST))
    found = []
    for (request,) in struct.iter_unpack("<Q", raw[: len(raw) // 8 * 8]):
        block = memory.read(request, IOCB.size)
        if len(block) == IOCB.size:
            opcode, _priority, fd = IOCB.unpack(block)
            found.append(Descriptor(fd, opcode in IOCB_WRITES))
    yield from dict.fromkeys(found)


def _direction(reads: bool, writes: bool) -> bool | None:
    return writes if reads != writes else None


def _unix_path(memory: Memory, address: int, size: int) -> str:
    raw = memory.read(address, min(size, 2 + 108))
    if len(raw) < 3 or struct.unpack_from("<H", raw)[0] != socket.AF_UNIX:
        return ""
    text = raw[2:].decode("utf-8", "surrogateescape")
    return "@" + text[1:].rstrip("\0") if text.startswith("\0") else text.partition("\0")[0]


def _signed(value: int) -> int:
    """An int argument, of which the kernel looks at the lower half."""
    low = value & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low
