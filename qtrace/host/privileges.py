"""Giving capabilities up for good, once what they were for is done.

The kernel keeps them by thread. Who gives them up for the process does so for its own thread; the
others of that moment follow when they next come by (``follow``), those that are started later have
none to begin with.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Iterable

# linux/prctl.h
SET_NO_NEW_PRIVS, AMBIENT, AMBIENT_CLEAR_ALL = 38, 47, 4
# linux/capability.h
VERSION_3 = 0x20080522
CAPABILITIES = {
    "CAP_DAC_OVERRIDE": 1, "CAP_DAC_READ_SEARCH": 2, "CAP_SETGID": 6, "CAP_SETUID": 7,
    "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_SYS_RESOURCE": 24, "CAP_PERFMON": 38,
    "CAP_BPF": 39, "CAP_CHECKPOINT_RESTORE": 40,
}  # fmt: skip
# PROC_USER_INIT_INO of linux/proc_ns.h: the host's own.
USER_NAMESPACE = "user:[4026531837]"
OUTSIDE = "run qtrace outside that namespace (a rootless container, unshare --user)"
# Effective, permitted, inheritable: the low halves of all, then the high ones.
SETS = struct.Struct("<6I")

_libc = ctypes.CDLL(None, use_errno=True)
_kept: frozenset[str] | None = None
_thread = threading.local()


def give_up(keep: Iterable[str] = ()) -> None:
    """Keep only these, of those that are held, in this process. Raises OSError."""
    global _kept
    _kept = frozenset(keep)
    follow()


def in_user_namespace() -> bool:
    """Whether this process is in another user namespace than the host's: what it holds there
    counts for nothing of the host's."""
    try:
        return os.readlink("/proc/self/ns/user") != USER_NAMESPACE
    except OSError:
        return False


def may_read_without(folder: str) -> bool:
    """Whether this user gets to a folder, and may list it, without any capability."""
    path = os.path.abspath(folder)
    while True:
        try:
            found = os.stat(path)
        except OSError:
            return True  # there is nothing to be read
        mine = found.st_gid in (os.getegid(), *os.getgroups())
        shift = 6 if found.st_uid == os.geteuid() else 3 if mine else 0
        wanted = 5 if path == os.path.abspath(folder) else 1
        if found.st_mode >> shift & wanted != wanted:
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


def given_up() -> bool:
    """Whether this process has given up to look into others."""
    return _kept is not None and "CAP_SYS_PTRACE" not in _kept


def follow() -> None:
    """Give up in this thread what the process has given up. Raises OSError."""
    if _kept is not None and getattr(_thread, "kept", None) != _kept:
        give_up_here(_kept)
        _thread.kept = _kept


def give_up_here(keep: Iterable[str] = ()) -> None:
    """Keep only these in this thread, and let no program that it executes have more.

    Raises OSError.
    """
    mask = sum(1 << CAPABILITIES[name] for name in keep)
    header = ctypes.create_string_buffer(struct.pack("<Ii", VERSION_3, 0))
    held = ctypes.create_string_buffer(SETS.size)
    _check(_libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    # A kernel before 4.3 has no such set.
    _libc.prctl(AMBIENT, AMBIENT_CLEAR_ALL, 0, 0, 0)
    _check(_libc.capget(header, held))
    low, high = mask & 0xFFFFFFFF, mask >> 32
    permitted = [half & kept for half, kept in zip(SETS.unpack(held.raw)[1::3], (low, high))]  # noqa: B905 (3.10)
    sets = (permitted[0], permitted[0], 0, permitted[1], permitted[1], 0)
    _check(_libc.capset(header, SETS.pack(*sets)))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
