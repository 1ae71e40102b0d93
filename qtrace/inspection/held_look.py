"""A look at a QEMU that is held for a moment: then running threads show their stacks, too.

The only thing in here that stops the target, by ptrace(2): no debugger's symbols are
read meanwhile, and nothing in it is changed. The kernel lets go of whatever a thread traces
when that thread ends, however it ends, so that a thread of its own does it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from qtrace.errors import PermissionMissing, RecorderFailed, RecorderUnavailable
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import Qemu
from qtrace.machine.arch_x86_64 import DWARF_NUMBERS, RETURN_ADDRESS
from qtrace.machine.ptrace import (
    INTERRUPT,
    LOOK_EVERY_S,
    SEIZE,
    get_registers,
    has_stopped,
    let_go,
    ptrace,
)
from qtrace.machine.unstoppable import Unstoppable, describe, sleeps_uninterruptibly
from qtrace.process.live_source import LiveSource
from qtrace.process.look_source import State
from qtrace.process.process import Process
from qtrace.qemu.aio.model import Look

# The longest that it is waited for threads to stop, which takes a fraction of a millisecond, but
# each needs a processor for it.
LONGEST_S = 0.2
# For one that still sleeps uninterruptibly so long after it was told to stop nobody is held: what
# it waits for may never come, and /proc shows where it sleeps.
ASLEEP_S = 0.01
# Whatever else there is to wait for while all is held: it takes 0.4 s with 2,000 threads.
HOLD_LIMIT_S = 2.0
# Threads that were made by others before these were stopped, and so on.
GENERATIONS = 10


@dataclass(frozen=True, slots=True)
class HeldLook:
    """A look with every thread's stack.

    Attributes:
        paused_ms: for how long the guest was held, at most.
        awake: the threads that did not stop. Of those that sleep the stacks are there, too.
    """

    look: Look
    paused_ms: float
    awake: list[Unstoppable]


def look_while_stopped(process: Process) -> HeldLook:
    """A look while every thread is held that can be.

    Raises:
        RecorderUnavailable: another process traces it.
        RecorderFailed: it takes too long; the process is let go when this one ends.
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
    looker = Looker(Qemu(source))
    before = looker.look()
    found: list[HeldLook | BaseException] = []

    def hold() -> None:
        # On a busy host the guest would else be held until we get a processor again. It is this
        # thread's alone, and ends with it.
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        began = time.monotonic()
        try:
            look, awake = _held(source, looker.look)
            found.append(HeldLook(look, (time.monotonic() - began) * 1e3, awake))
        except BaseException as error:
            found.append(error)

    # A daemon: should the kernel not answer it, it ends with the process, and nobody waits for it.
    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    holder.join(LONGEST_S + HOLD_LIMIT_S)
    if not found:
        raise RecorderFailed(
            f"gave up after {LONGEST_S + HOLD_LIMIT_S:.1f} s: process {process.pid} is held, and "
            "cannot be read",
            "inspect it without --gdb",
        )
    (result,) = found
    if isinstance(result, BaseException):
        raise result
    return replace(result, look=replace(result.look, held=before.held))


def _held(source: _HeldSource, look: Callable[[], Look]) -> tuple[Look, list[Unstoppable]]:
    """A look while every thread is stopped, and those that did not stop.

    The kernel lets go of these, too, when this thread ends: they go on when they can.
    """
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
        awake = sorted(seized - stopped.keys())
        return look(), [describe(source.pid, tid) for tid in awake]
    finally:
        source.registers = {}
        for tid, status in stopped.items():
            with suppress(ProcessLookupError):
                let_go(tid, status)


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
    return _wait_for(pid, set(seized), deadline)


def _wait_for(pid: int, awaited: set[int], deadline: float) -> dict[int, int]:
    """The wait status of each thread that stops: of all but those that sleep uninterruptibly."""
    found = {}
    ready = time.monotonic() + ASLEEP_S
    while awaited:
        for tid in list(awaited):
            try:
                status = has_stopped(tid)
            except ChildProcessError:
                awaited.discard(tid)
                continue
            if status is not None:
                found[tid] = status
                awaited.discard(tid)
        now = time.monotonic()
        if now > deadline:
            break
        if now > ready and all(sleeps_uninterruptibly(pid, tid) for tid in awaited):
            break
        time.sleep(LOOK_EVERY_S)
    return found


def _request(request: int, tid: int) -> bool:
    """Whether a thread could be asked: it may have ended, or been killed."""
    try:
        ptrace(request, tid)
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
        # Its sleep is that of who is traced, by us.
        return replace(state, registers=held, letter="", wchan="")
