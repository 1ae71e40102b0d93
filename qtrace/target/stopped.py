"""A look at a QEMU that is held for a moment: then running threads show their stacks, too.

The only thing in ``qtrace.target`` that stops the target, by ptrace(2): no debugger's symbols are
read meanwhile, and nothing in it is changed. The kernel lets go of whatever a thread traces
when that thread ends, however it ends, so that a thread of its own does it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from qtrace.errors import PermissionMissing, RecorderUnavailable
from qtrace.target.aio.model import Look
from qtrace.target.arch_x86_64 import DWARF_NUMBERS, RETURN_ADDRESS
from qtrace.target.live import LiveSource
from qtrace.target.look import Looker
from qtrace.target.process import Process
from qtrace.target.ptrace import DETACH, INTERRUPT, SEIZE, get_registers, ptrace, wait_stop
from qtrace.target.source import State

# The longest that it is waited for threads to stop, which takes a fraction of a millisecond, but
# each needs a processor for it. One that does not is shown as /proc has it.
LONGEST_S = 0.25
# Threads that were made by others before these were stopped, and so on.
GENERATIONS = 10


def look_while_stopped(process: Process) -> tuple[Look, float]:
    """A look with every thread's stack, and for how long the guest was held, in ms at most.

    Raises:
        RecorderUnavailable: another process traces it.
        PermissionMissing: it may not be traced by us.
        NoSuchProcess: it has ended meanwhile.
    """
    tracer = process.tracer()
    if tracer:
        raise RecorderUnavailable(
            f"process {process.pid} is already traced by process {tracer}",
            "inspect it without --gdb, which needs nobody's leave",
        )
    # What takes long (symbols, unwind tables) is read before the guest is held.
    source = _HeldSource(process)
    looker = Looker(source)
    was_stopped = looker.look().stopped
    found: list[tuple[Look, float] | BaseException] = []

    def hold() -> None:
        # On a busy host the guest would else be held until we get a processor again. It is this
        # thread's alone, and ends with it.
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        began = time.monotonic()
        try:
            look = _held(source, looker.look)
            found.append((look, (time.monotonic() - began) * 1e3))
        except BaseException as error:
            found.append(error)

    holder = threading.Thread(target=hold)
    holder.start()
    holder.join()
    (result,) = found
    if isinstance(result, BaseException):
        raise result
    look, paused_ms = result
    return replace(look, stopped=was_stopped), paused_ms


def _held(source: _HeldSource, look: Callable[[], Look]) -> Look:
    """A look while every thread is stopped."""
    deadline = time.monotonic() + LONGEST_S
    seized: set[int] = set()
    stopped: dict[int, int] = {}
    try:
        for _ in range(GENERATIONS):
            # The kernel's own (KVM's, vhost's) can neither be stopped nor seen.
            new = {t for t in source.threads() if not source.state(t).kernel} - seized
            if not new:
                break
            seized |= new
            stopped |= _stop(source.pid, new, deadline)
        source.registers = {tid: _registers(tid) for tid in stopped}
        return look()
    finally:
        source.registers = {}
        for tid, status in stopped.items():
            # With the signal that had stopped it, if it was one and not us.
            _request(DETACH, tid, 0 if status >> 16 else os.WSTOPSIG(status))


def _stop(pid: int, tids: set[int], deadline: float) -> dict[int, int]:
    """Stop threads; the wait status of each that stops in time."""
    seized, refused = [], None
    for tid in tids:
        try:
            if _request(SEIZE, tid):
                seized.append(tid)
        except PermissionError as error:
            # Of a few, somebody else may trace one.
            refused = error
    if refused is not None and not seized:
        raise PermissionMissing(
            f"not allowed to stop process {pid}", "leave out --gdb, or run qtrace as root"
        ) from refused
    for tid in seized:
        _request(INTERRUPT, tid)
    found = {}
    for tid in seized:
        try:
            found[tid] = wait_stop(tid, max(0.0, deadline - time.monotonic()))
        except (ChildProcessError, TimeoutError):
            continue
    return found


def _request(request: int, tid: int, data: int = 0) -> bool:
    """Whether a thread could be asked: it may have ended, or been killed."""
    try:
        ptrace(request, tid, 0, data)
    except ProcessLookupError:
        return False
    return True


def _registers(tid: int) -> dict[int, int]:
    """By DWARF number; empty when the thread has been killed."""
    try:
        values = get_registers(tid)
    except ProcessLookupError:
        return {}
    return {number: values[name] for name, number in DWARF_NUMBERS.items()}


class _HeldSource(LiveSource):
    """A live source that has the registers of all threads while they are held."""

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self.registers: dict[int, dict[int, int]] = {}

    def state(self, tid: int) -> State:
        state = super().state(tid)
        held = self.registers.get(tid)
        if not held or not held[RETURN_ADDRESS]:
            return state
        return State(state.blocked_in, held, state.cpu_ns)
