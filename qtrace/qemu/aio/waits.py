"""What a thread waits in, and for whom: decided here, for every lock, join, poll and fault.

Pure functions over a ``Look``.
"""

from __future__ import annotations

from dataclasses import dataclass

from qtrace.knowledge import IDLE
from qtrace.qemu.aio.mechanics import (
    BIG_LOCK,
    FDMON_FRAMES,
    GLIB_LOOP,
    JOINING,
    LOCKING,
    LOOP,
    LOOPS,
    MECHANICS,
    POLLING,
    TOLD,
    VCPU_IDLE,
    WAITING_FOR_SIGNAL,
    command_of,
    is_unnamed,
    telling,
)
from qtrace.qemu.aio.model import PAGE_FAULT, USERFAULT, BottomHalf, Context, Look, Thread

# How a thread waits for others: what the thing is to them.
LOCK, JOIN, VCPUS, VCPU, RCU, READERS = "lock", "join", "vcpus", "vcpu", "rcu", "readers"
# Who waits for all vCPU threads that run their guest, or may: to end an ioctl(2), or a piece of its
# code (accel/accel-blocker.c, cpus-common.c).
FOR_VCPUS = frozenset({"start_exclusive", "accel_ioctl_inhibit_begin"})
# Before a thread that somebody waits for, and where none shows.
SUBJECTS = {
    JOIN: "the end of", VCPUS: "vCPU thread", VCPU: "vCPU thread", RCU: "the RCU thread",
    READERS: "the RCU reader",
}  # fmt: skip
NOBODY = {
    JOIN: "the end of a thread", VCPUS: "vCPU threads", VCPU: "a vCPU thread",
    RCU: "the RCU thread", READERS: "RCU readers",
}  # fmt: skip
# AioContext {GSource source; QemuRecMutex lock; ...} up to 8.2 (include/block/aio.h): no other one
# lies so near its beginning.
CONTEXT_HEAD = 0x90
# pause_all_vcpus() may wait for dozens of them.
NAMED = 2


@dataclass(frozen=True)
class Wait:
    """What a thread waits for that other threads of the process have in hand.

    Attributes:
        kind: ``lock``, ``join``, ``vcpus`` (pause_all_vcpus, ``FOR_VCPUS``), ``vcpu``
            (run_on_cpu: one of them, which need not show), ``rcu`` (drain_call_rcu, for the
            thread that calls what call_rcu() was given), ``readers`` (synchronize_rcu); empty when
            it waits for none.
        what: it in words, as in "waits for ...": ``the BQL``, ``a mutex (0x55..)``.
        whom: the threads that have it in hand; empty when that cannot be told, or nobody has.
    """

    kind: str = ""
    what: str = ""
    whom: tuple[Thread, ...] = ()


def waiting(look: Look, context: Context, name: str = "") -> list[BottomHalf]:
    """What is pending in a context and will be called; of one name only unless it is empty.

    An idle one is no work to be done: it may be put off for as long as a program likes.
    """
    return [
        half
        for half in look.bottom_halves
        if half.ctx == context.address
        and half.will_run
        and not half.flags & IDLE
        and name in ("", half.name)
    ]


def same_wait(one: Thread, other: Thread) -> bool:
    """Whether a thread sat at one and the same place of the same chain at two moments."""
    return bool(one.frames) and one.waits_at == other.waits_at and one.frames == other.frames


def is_unmoved(one: Thread, other: Thread) -> bool:
    """Whether a thread has not run at all between two looks: it was given no processor."""
    known = bool(one.cpu_ns) and bool(other.blocked_in)
    return known and (one.cpu_ns, one.turns) == (other.cpu_ns, other.turns)


def asleep_ns(look: Look, thread: Thread) -> int:
    """How long at least a thread had not run at a look; 0 where that does not show."""
    since_ns = thread.asleep_since_ns
    return max(look.time_ns - since_ns, 0) if since_ns else 0


# What one thread waits in


def has_loop(look: Look, thread: Thread) -> bool:
    """Whether a thread has a loop that it is bound to come back to.

    qemu-img's main thread has none: it goes from one thing to the next. Of qemu-nbd's and
    qemu-io's the stack shows it.
    """
    return look.main_loop or thread.role != "main" or LOOP in thread.functions


def in_loop(look: Look, thread: Thread) -> bool:
    """Whether a thread sleeps in its own loop's wait: whatever comes, it will run.

    That is ppoll() called by main_loop_wait(), an IOThread's glib loop, or its outermost
    aio_poll(). Any other function in between is a callback, or a wait for a lock. A main thread
    without a loop polls where it waits.
    """
    functions = thread.functions
    if not thread.blocked_in:
        return False
    outermost = is_polling(thread) and len(thread.polls) == 1
    if not has_loop(look, thread):
        return outermost
    if thread.role != "main" and outermost:
        return not telling(functions[thread.polls[0].frame + 1 :])
    loop = LOOP if thread.role == "main" else GLIB_LOOP
    if loop not in functions:
        return False
    return thread.blocked_in in POLLING and _only_mechanics(functions[: functions.index(loop)])


def is_polling(thread: Thread) -> bool:
    """Whether a thread sleeps in its innermost aio_poll() itself: nothing but the machinery of
    polling lies between. One that sleeps in a callback of it polls nothing."""
    if not thread.polls or thread.blocked_in not in POLLING:
        return False
    inner = thread.functions[: thread.polls[0].frame]
    return _only_mechanics(inner) and sum(map(is_unnamed, inner)) <= FDMON_FRAMES


def _only_mechanics(functions: list[str]) -> bool:
    dispatched = {"aio_bh_poll", "aio_bh_call", "aio_dispatch", "g_main_context_dispatch"}
    return all(MECHANICS.match(f) and f not in BIG_LOCK | dispatched for f in functions)


def is_blocked_off(look: Look, thread: Thread, ctx: int) -> bool:
    """Whether a thread sleeps where it cannot run its context's bottom halves.

    Its own loop, and an aio_poll() of that very context, are where it can.
    """
    if not thread.blocked_in or not thread.frames or not thread.whole:
        return False
    if is_polling(thread) and thread.polls[0].ctx in (ctx, 0):
        return False
    return not in_loop(look, thread)


def may_run_elsewhere(look: Look, context: Context, runner: Thread) -> bool:
    """Whether another thread polls a context just now, and so runs what is pending there.

    Whoever holds the BQL may poll the main one at any time, as long as it runs.
    """
    others = [thread for thread in look.threads if thread.tid != runner.tid]
    if any(polls_now(thread, context.address) for thread in others):
        return True
    holders = [thread for thread in others if may_hold_lock(look, thread)]
    return context.name == "main" and any(not h.blocked_in or not h.whole for h in holders)


def polls_now(thread: Thread, ctx: int) -> bool:
    """Whether a thread is in an aio_poll() of a context, or of one that cannot be told, and
    does not sleep in a callback of it."""
    inside = bool(thread.polls) and thread.polls[0].ctx in (ctx, 0)
    return inside and (not thread.blocked_in or is_polling(thread))


def may_hold_lock(look: Look, thread: Thread) -> bool:
    """Whether a thread holds the BQL; where that cannot be read, whether it is one that could."""
    if look.bql_holder is None:
        return thread.role in ("vcpu", "migration")
    return thread.tid == look.bql_holder


def waits_for_big_lock(look: Look, thread: Thread) -> bool:
    """By the mutex's address; by the function, where the address or the call's arguments are not
    known. (11.1 jumps from bql_lock_impl(), which is not on the stack then.)"""
    if not thread.blocked_in:
        return False
    known = look.bql is not None and thread.futex is not None
    if known and thread.futex is not None and _is_locking(thread):
        return thread.futex.address == look.bql
    return bool(BIG_LOCK.intersection(thread.functions[: _depth_of_wait(thread)]))


# For whom


def wait_for(look: Look, thread: Thread) -> Wait:
    """Which threads of the process a sleeping one waits for, where that shows."""
    if not thread.blocked_in:
        return Wait()
    if waits_for_big_lock(look, thread):
        holder = look.thread(look.bql_holder or 0)
        whom = (holder,) if holder is not None and holder.tid != thread.tid else ()
        return Wait(LOCK, "the BQL", whom)
    # pthread_join() has no name in newer C libraries: QEMU's own tells, the first that does.
    functions = thread.functions[: _depth_of_wait(thread) + 1]
    if thread.futex is not None and any(JOINING.match(f) for f in functions):
        joined = look.thread(thread.futex.word or 0)
        return Wait(JOIN, "the end", (joined,) if joined is not None else ())
    if thread.futex is not None and _is_locking(thread):
        owner = look.thread(thread.futex.owner or 0)
        whom = (owner,) if owner is not None and owner.tid != thread.tid else ()
        return Wait(LOCK, _mutex(look, thread.futex.address), whom)
    if "synchronize_rcu" in functions:
        readers = look.rcu_readers or ()
        return Wait(READERS, "its RCU read", tuple(t for t in look.threads if t.tid in readers))
    if "drain_call_rcu" in functions:
        return Wait(RCU, "its RCU callbacks", tuple(t for t in look.threads if _calls_rcu(t)))
    # Each vCPU thread stops, and does what it is asked to, when it gets back to its loop (cpus.c).
    late = [t for t in look.threads if _is_late(t) and t.tid != thread.tid]
    pausing = "pause_all_vcpus" in thread.functions and not is_polling(thread)
    if pausing or FOR_VCPUS.intersection(functions):
        # One that runs may be about to stop: who sleeps is told first.
        return Wait(VCPUS, "", tuple(sorted(late, key=lambda t: not t.blocked_in)))
    if "do_run_on_cpu" in functions:
        alone = sum(t.role == "vcpu" for t in look.threads) == 1
        asleep = [t for t in late if t.blocked_in or alone]
        return Wait(VCPU, "", tuple(asleep if len(asleep) == 1 else ()))
    return Wait()


def _mutex(look: Look, address: int) -> str:
    below = [context for context in look.contexts if 0 < context.address < address]
    nearest = max(below, key=lambda context: context.address, default=None)
    if nearest is not None and address - nearest.address < CONTEXT_HEAD:
        return f"the AioContext lock of {nearest.quoted}"
    return f"a mutex ({address:#x})"


def _depth_of_wait(thread: Thread) -> int:
    """How many frames, from the leaf, are the wait itself: up to the first function that tells."""
    functions = thread.functions
    return next((n for n, f in enumerate(functions) if not MECHANICS.match(f)), len(functions))


def _is_locking(thread: Thread) -> bool:
    """Whether it sleeps in a mutex: one that it takes after it was signalled, too."""
    for function in thread.functions[: _depth_of_wait(thread)]:
        if LOCKING.match(function):
            return True
        if WAITING_FOR_SIGNAL.match(function):
            return False
    return False


def _is_late(thread: Thread) -> bool:
    """Whether a vCPU thread is not where it has stopped, or its guest can run."""
    idle = any(VCPU_IDLE.match(function) for function in thread.functions)
    return thread.role == "vcpu" and not idle


def _calls_rcu(thread: Thread) -> bool:
    return "call_rcu_thread" in thread.functions


def chain(look: Look, thread: Thread) -> list[Thread]:
    """All those that a thread waits for, and that these wait for, each once; not itself."""
    found: dict[int, Thread] = {}
    todo = [thread]
    while todo:
        for other in wait_for(look, todo.pop(0)).whom:
            if other.tid not in found and other.tid != thread.tid:
                found[other.tid] = other
                todo.append(other)
    return list(found.values())


def circle(look: Look, thread: Thread) -> list[Thread]:
    """The threads that wait for one another by locks, joins and RCU, from this one on; else
    empty. (A vCPU thread may stop by itself.)"""
    seen: set[int] = set()

    def back(path: list[Thread]) -> list[Thread]:
        wait = wait_for(look, path[-1])
        # One that holds what it waits for itself is left out of `whom`.
        for following in wait.whom if wait.kind not in (VCPUS, VCPU) else ():
            if following.tid == thread.tid:
                return path
            if following.tid not in seen:
                seen.add(following.tid)
                if found := back([*path, following]):
                    return found
        return []

    return back([thread])


def at_work(look: Look) -> list[Thread]:
    """The threads of the pool that run, or are ready to: what a poll waits for may be just what
    they have in hand. Without its name only a thread's role ``other`` shows."""
    return [
        t for t in look.threads
        if t.role in ("worker", "other") and not t.blocked_in and not t.kernel
    ]  # fmt: skip


def behind(look: Look, thread: Thread) -> list[tuple[int, int]]:
    """For rows of a recording: the threads that one waits for, to the end, with the processor
    time of each; where a poll waits for what a worker has in hand, that one with the look's
    time, which no other look has."""
    members = chain(look, thread)
    found = {member.tid: member.cpu_ns for member in members}
    if any(is_polling(one) for one in [thread, *members]):
        found |= {worker.tid: look.time_ns for worker in at_work(look)}
    return sorted(found.items())


# In words


def in_words(look: Look, thread: Thread, told: frozenset[int] = frozenset()) -> str:
    """What a thread waits in, for whom, and what these wait in, to the end, as half a sentence.

    Args:
        told: the threads that the sentence has told of already.
    """
    told |= {thread.tid}
    if not thread.blocked_in:
        where = frames_in_words(named_frames(thread))
        return (f"runs in {where}" if where else "runs") + _outside(thread)
    where = frames_in_words(named_frames(thread))
    if thread.blocked_in == PAGE_FAULT:
        text = f"is in a page fault{_fault(thread)}" + (f" of {where}" if where else "")
    else:
        text = f"waits in {where}" if where else f"sleeps in {thread.blocked_in}()"
        if thread.wchan.startswith(USERFAULT):
            text += f", in a page fault{_fault(thread)}"
    if is_polling(thread):
        text += f", polling {look.context(thread.polls[0].ctx).quoted}"
    elif thread.polls:
        text += f", a callback inside aio_poll() of {look.context(thread.polls[0].ctx).quoted}"
    text += _whom(look, thread, told)
    if look.bql_holder == thread.tid and thread.role != "main":
        text += ", holding the BQL"
    return text + _outside(thread)


def _outside(thread: Thread) -> str:
    return f", {thread.outside}" if thread.outside else ""


def _whom(look: Look, thread: Thread, told: frozenset[int]) -> str:
    wait = wait_for(look, thread)
    if not wait.kind:
        return ""
    if not wait.whom:
        return _for_nobody(look, thread, wait)
    text = ""
    for other in wait.whom[:NAMED]:
        subject = f"{wait.what} of" if wait.kind == LOCK else SUBJECTS[wait.kind]
        text += f", for {subject} {other.label}"
        text += ": a circle" if other.tid in told else f", which {in_words(look, other, told)}"
    more = len(wait.whom) - NAMED
    return text + (f" (and {more} more)" if more > 0 else "")


def _for_nobody(look: Look, thread: Thread, wait: Wait) -> str:
    """For a lock or thread whose holder does not show, or that nobody holds."""
    if wait.kind in NOBODY:
        return f", for {NOBODY[wait.kind]}"
    holder = look.bql_holder if wait.what == "the BQL" else _owner(thread)
    if holder is None:
        return f", for {wait.what}, whose holder cannot be read"
    if holder == 0:
        return f", for {wait.what}, which nobody holds"
    if holder == thread.tid:
        return f", for {wait.what}, which it holds itself"
    return f", for {wait.what} of {holder}, which is no thread of it any more"


def _owner(thread: Thread) -> int | None:
    return None if thread.futex is None else thread.futex.owner


def _fault(thread: Thread) -> str:
    """What a page fault waits for, as the kernel's function tells."""
    if thread.wchan.startswith(USERFAULT):
        return " that userfaultfd has to serve (postcopy)"
    return f" ({thread.wchan})" if thread.wchan else ""


def frames_in_words(names: list[str]) -> str:
    """``a < b < c``, leaf first: the innermost ones, and the outermost."""
    if len(names) <= TOLD + 1:
        return " < ".join(names)
    return " < ".join([*names[:TOLD], "...", names[-1]])


def named_frames(thread: Thread) -> list[str]:
    """The functions that tell why a thread waits; the loop itself only when nothing else does."""
    names = telling(thread.functions)
    loop = next((n for n, name in enumerate(names) if name in LOOPS), 0)
    return names[:loop] if loop else names


def command_in(thread: Thread) -> str:
    """The monitor command that a thread is in, as ``QMP stop``; empty when in none."""
    return command_of(thread.functions)


def polled_context(look: Look, thread: Thread) -> Context | None:
    """The context of a thread's innermost aio_poll(), None when it is in none."""
    if not thread.polls:
        return None
    return look.context(thread.polls[0].ctx)
