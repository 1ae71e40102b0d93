"""Every QEMU of this host checked, each by a process of its own.

One that cannot be looked at (the kernel does not answer, no right to) keeps no other waiting: its
process is given up after ``GRACE_S`` more than it should take.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from qtrace.check.one_qemu import INCONCLUSIVE, RANKING, Checked, check
from qtrace.errors import ExitStatus, HasEnded, NoSuchProcess, QtraceError
from qtrace.host.unanswered import watch_over_this_thread
from qtrace.process.process_list import Listed, list_processes

# So many at a time; most of the time each sleeps.
AT_ONCE = 8
# What a check may take beside its watching, on a crowded host.
GRACE_S = 20.0

# Of a check: its exit status, and what is to be known of it (JSON-able, with ``verdict``).
Answer = tuple[ExitStatus, dict[str, Any]]


@dataclass(frozen=True)
class OneOfMany:
    """The answer about one QEMU; without one it has ``error`` instead."""

    pid: int
    guest: str
    status: ExitStatus
    answer: dict[str, Any]

    @property
    def verdict(self) -> str:
        return str(self.answer["verdict"])


def check_host(for_s: float, answer: Callable[[Checked], Answer]) -> list[OneOfMany]:
    """All of them, the worst first. By looks alone: nothing is probed.

    Args:
        answer: makes of a check what is kept; a module's function.
    """
    # The processes come from one that has loaded what they need.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__, answer.__module__])
    listed = list_processes()
    found: dict[int, OneOfMany | None] = {}
    room = threading.Semaphore(AT_ONCE)

    def work(one: Listed) -> None:
        with room:
            found[one.pid] = _one(one, for_s, answer, processes)

    # While a memory map is locked and somebody sets a uprobe in that program, no process can be
    # made on the whole host (uprobe_start_dup_mmap()): whoever still waits then is left waiting.
    threads = [threading.Thread(target=work, args=(one,), daemon=True) for one in listed]
    rounds = -(-len(listed) // AT_ONCE)
    until = time.monotonic() + rounds * (for_s + GRACE_S)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0))
    told = [found.get(one.pid, _unknown(one, "it could not be checked in time")) for one in listed]
    return sorted((one for one in told if one is not None), key=_rank)


def _rank(one: OneOfMany) -> tuple[int, int]:
    return RANKING.index(one.verdict), one.pid


def _one(
    one: Listed,
    for_s: float,
    answer: Callable[[Checked], Answer],
    processes: multiprocessing.context.ForkServerContext,
) -> OneOfMany | None:
    """None when it has ended meanwhile."""
    if not one.version:
        # It does not let itself be read.
        return _unknown(one, one.hindrance)
    ours, theirs = processes.Pipe(duplex=False)
    child = processes.Process(target=_work, args=(one.pid, for_s, answer, theirs), daemon=True)
    limit_s = for_s + GRACE_S
    with ours:
        try:
            with theirs:
                child.start()
        except OSError as error:
            # As where its user may not execute Python by the path that it has.
            return _unknown(one, f"no process can be started to check it: {error.strerror}")
        try:
            if not ours.poll(limit_s):
                # It may sleep in the kernel for ever, and is left behind then.
                child.kill()
                return _unknown(one, f"no answer within {limit_s:.0f} s")
            said = ours.recv()
        except (EOFError, OSError):
            return _unknown(one, "its check failed")
    if isinstance(said, str):
        return _unknown(one, said)
    return OneOfMany(one.pid, one.name, *said) if said is not None else None


def _work(pid: int, for_s: float, answer: Callable[[Checked], Answer], pipe: Connection) -> None:
    """In the process of its own: send the answer, None when the QEMU has ended, or why there is
    none."""

    def give_up(error: QtraceError) -> None:
        pipe.send(error.message)
        os._exit(error.exit_status)

    watch_over_this_thread(give_up)
    try:
        pipe.send(answer(check(pid, for_s, record=False)))
    except (NoSuchProcess, HasEnded):
        pipe.send(None)
    except QtraceError as error:
        pipe.send(error.message)


def _unknown(one: Listed, why: str) -> OneOfMany:
    answer = {"verdict": INCONCLUSIVE, "target": {"pid": one.pid}, "guest": one.name, "error": why}
    return OneOfMany(one.pid, one.name, ExitStatus.INCONCLUSIVE, answer)
