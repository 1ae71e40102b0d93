"""Outlives qtrace and gdb, and puts a target back when gdb dies with breakpoints in it.

A process of its own (standard library only), started before gdb attaches; ``main`` has these
arguments:

    TARGET_PID TARGET_PIDFD GDB_PIDFD MEMORY_FD LIFELINE_FD

Standard input: one line of JSON, ``{"code": {"ADDRESS": ["HEX", "REGISTER" or null], ...},
"wanted_s": SECONDS}`` with what is at each address that gdb will set (``Breakpoint``) and for how
long it may hold threads on purpose; then single letters, ``l`` when gdb holds the lifeline, ``u``
when the user has stopped the target and ``d`` when gdb has detached in good order; end of file when
qtrace has gone. Standard output: ``ready``, and one line of JSON when it had to act.

A gdb that is killed leaves its breakpoints in the code, and the next thread to meet one is killed
by SIGTRAP, QEMU with it: they must be gone before the kernel lets the threads run
(``lifeline``), and threads that have met one already are held back until they can be helped
(``rescue``). Stops that gdb had asked for and not collected leave the process in state T, and those
that a thread still sleeps too deeply for would do so whenever it wakes up.

A gdb that holds threads for too long (``qtrace.gdb.safety.hold``) is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping

from qtrace.gdb.safety.hold import HoldLimit
from qtrace.gdb.safety.lifeline import Lifeline
from qtrace.gdb.safety.priority import WATCHDOG_PRIORITY, hurry
from qtrace.gdb.safety.rescue import Breakpoint, Rescue
from qtrace.machine.stat_file import SIGNAL, STATE, stat_fields
from qtrace.machine.unstoppable import sentence, unstoppable

BREAKPOINT = b"\xcc"
# qtrace is gone: the kernel has sent gdb SIGHUP, which ends it within a second or two.
PATIENCE_S = (10.0, 5.0)
# How long stops that were under way may still take effect.
SETTLED_S, LIMIT_S = 0.2, 3.0
# The lifeline tells of a killed gdb before the pidfd does.
LIFELINE_LIMIT_S, RESCUE_LIMIT_S = 0.05, 10.0
# A thread may be on its way into a breakpoint that has just been taken out.
LOOK_EVERY_S = 0.0001


def main() -> None:
    pid, target, gdb, memory, lifeline = (int(argument) for argument in sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    processors = os.sched_getaffinity(0)
    hurry(WATCHDOG_PRIORITY)
    orders = json.loads(read_line())
    places = orders["code"].items()
    code = {int(a): Breakpoint(bytes.fromhex(b), pushes) for a, (b, pushes) in places}
    if not may_write(memory, code):
        say("refused")
        return
    restored: list[str] = []
    rescued: list[int] = []

    def restore_all() -> None:
        restored.extend(hex(a) for a, what in code.items() if restore(memory, a, what.original))

    killed = threading.Event()

    def hold_on() -> None:
        rescue = Rescue(pid, memory, code, processors)
        if Lifeline(lifeline).wait():
            killed.set()
            restore_all()
            rescue.hold_back()
            while not select.select([gdb], [], [], LOOK_EVERY_S)[0]:
                rescue.hold_back()
            rescued.extend(rescue.bring_back())

    holding_on = threading.Thread(target=hold_on, daemon=True)
    say("ready")
    gave_up: list[str] = []

    def give_up(held_s: float) -> None:
        sleeping = unstoppable(pid)
        why = f": {sentence(sleeping)}" if sleeping else ""
        gave_up.append(f"it had held the process for {held_s:.1f} s{why}")
        signal.pidfd_send_signal(gdb, signal.SIGKILL)

    hold = HoldLimit(pid, orders["wanted_s"])
    stopped_by_user = wait_for_end(target, gdb, holding_on.start, hold, give_up)
    if stopped_by_user is None:
        return
    # A gdb that ends by itself has detached, and may take the lifeline along.
    if killed.wait(LIFELINE_LIMIT_S):
        holding_on.join(RESCUE_LIMIT_S)
    # Without a lifeline it is most likely too late; else nothing is left to restore.
    restore_all()
    continued = False if stopped_by_user else continue_if_stopped(pid, target)
    done = {"restored": restored, "rescued": rescued, "continued": continued}
    say(json.dumps({**done, "gave_up": "".join(gave_up)}))


def read_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1)
        if not part:
            sys.exit(1)
        line += part
    return line


def say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(1, text.encode() + b"\n")


def may_write(memory: int, code: Mapping[int, Breakpoint]) -> bool:
    """Whether this kernel lets us write code, tried with the very byte that is there."""
    try:
        for address in list(code)[:1]:
            os.pwrite(memory, os.pread(memory, 1, address), address)
    except OSError:
        return False
    return True


def wait_for_end(
    target: int,
    gdb: int,
    held: Callable[[], None],
    hold: HoldLimit,
    give_up: Callable[[float], None],
) -> bool | None:
    """Until gdb has died: whether the user has stopped the target. None when all is well.

    Args:
        held: called when gdb holds the lifeline.
        give_up: called once gdb has held threads for too long, with the seconds.
    """
    given_up = False
    stopped_by_user = False
    poll = select.poll()
    for fd in (0, target, gdb):
        poll.register(fd, select.POLLIN)
    patience = None
    means = [signal.SIGHUP, signal.SIGKILL]
    while True:
        # It must not keep the processor busy that a dying gdb needs.
        awaited = [t for t in (patience, None if given_up else hold.next_look) if t is not None]
        left = max(min(awaited) - time.monotonic(), 0) * 1000 if awaited else None
        ready = {fd for fd, _ in poll.poll(left)}
        if target in ready:
            return None
        if gdb in ready:
            # What qtrace has said before counts: it ends gdb after that.
            said = os.read(0, 4096) if 0 in ready else b""
            return None if b"d" in said else stopped_by_user or b"u" in said
        if 0 in ready:
            said = os.read(0, 4096)
            if b"d" in said:
                return None
            if b"l" in said:
                held()
            stopped_by_user = stopped_by_user or b"u" in said
            if not said:
                poll.unregister(0)
                patience = time.monotonic() + PATIENCE_S[0]
        elif not given_up and time.monotonic() >= hold.next_look and (held_s := hold.exceeded()):
            give_up(held_s)
            given_up = True
        elif patience is not None and time.monotonic() >= patience and means:
            signal.pidfd_send_signal(gdb, means.pop(0))
            patience = time.monotonic() + PATIENCE_S[1] if means else None


def restore(memory: int, address: int, original: bytes) -> bool:
    """Write the original byte back where a breakpoint is left."""
    try:
        if os.pread(memory, 1, address) != BREAKPOINT or original == BREAKPOINT:
            return False
        return os.pwrite(memory, original, address) == 1
    except OSError:
        return False


def continue_if_stopped(pid: int, target: int) -> bool:
    """SIGCONT for as long as stops of the dead tracer take effect, or still wait for a thread.

    Whether any did. The kernel throws away the stops that wait when it sends SIGCONT.
    """
    continued = False
    began = quiet = time.monotonic()
    while time.monotonic() - quiet < SETTLED_S and time.monotonic() - began < LIMIT_S:
        if is_stopped(pid):
            try:
                signal.pidfd_send_signal(target, signal.SIGCONT)
            except ProcessLookupError:
                break
            continued, quiet = True, time.monotonic()
        time.sleep(0.005)
    return continued


def is_stopped(pid: int) -> bool:
    """Whether some thread is, or will be when it wakes up: a tracer's SIGSTOP is for one thread."""
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/stat", errors="replace") as file:
                fields = stat_fields(file.read())
            if fields[STATE] == "T" or int(fields[SIGNAL]) & 1 << (signal.SIGSTOP - 1):
                return True
    except OSError:
        pass
    return False
