"""A process that ends when the one that started it does."""

from __future__ import annotations

import ctypes
import signal

_SET_PDEATHSIG = 1  # linux/prctl.h
# Loaded before anything is forked: a forked process may not wait for the loader's lock.
_libc = ctypes.CDLL(None, use_errno=True)


def end_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """For a process that was forked a moment ago (``preexec_fn``, too): the kernel sends it this
    signal when the thread that forked it ends."""
    _libc.prctl(_SET_PDEATHSIG, by)
