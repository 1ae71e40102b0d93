"""What a thread waits in, for whom, and whether it can go on: pure functions over a ``Look``."""

from __future__ import annotations

import re

from qtrace.target.aio.model import IDLE, BottomHalf, Context, Look, Thread

# How many named frames of a wait are told.
TOLD = 4
# How a thread waits, not why: left out where a wait is told.
MECHANICS = re.compile(
    r"_*(ppoll|poll|g_poll|epoll_p?wait|syscall|futex|clone|start_thread|lll_)|_*pthread_|"
    r"g_main_context_(iterate|poll)|qemu_(poll_ns|cond_(timed)?wait|mutex_lock|rec_mutex_lock|sem_)|fdmon_|aio_poll$|"
    r"(qemu_mutex_lock_iothread_impl|bql_lock_impl|qemu_cond_wait_(iothread|bql))$|"
    r"_*(libc_start|GI_)|[^@]*@0x|\?|(__)?(ioctl|read|write|nanosleep|clock_nanosleep)$"
)
BIG_LOCK = frozenset({"bql_lock_impl", "qemu_mutex_lock_iothread_impl"})
# The main thread's loop, and the one that IOThreads run while they have handlers of glib's.
LOOP, GLIB_LOOP = "main_loop_wait", "g_main_loop_run"
STARTS = frozenset({"main", "_start", "qemu_default_main", "qemu_main"})


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
    """Whether a thread sat in one and the same wait at two moments.

    The same place of the same chain is not enough: a thread that takes a lock again and again
    is always found there. Unless it polls (a nested poll wakes up and goes on polling), it
    must not have run at all.
    """
    same_place = one.waits_at == other.waits_at and one.frames == other.frames
    unmoved = bool(one.cpu_ns) and one.cpu_ns == other.cpu_ns
    return bool(one.frames) and same_place and (unmoved or bool(one.polls))


def same_chain(before: Look, now: Look, thread: Thread) -> bool:
    """Whether a thread sat in one wait, and so did all those that it waits for: behind
    somebody who moves it is starved, not stuck."""
    earlier = before.thread(thread.tid)
    if earlier is None or not same_wait(earlier, thread):
        return False
    return behind(before, earlier) == behind(now, thread)


def behind(look: Look, thread: Thread) -> list[tuple[int, int]]:
    """The threads that one waits for, and those that these wait for: tid and processor time.

    What a poll, or who has the BQL, waits for may be just what a worker thread has in hand.
    While such a one runs, or is ready to and gets no processor, it goes on: it stands there with
    the look's time, which no other look has.
    """
    found: dict[int, int] = {}
    todo, polling = [thread], False
    while todo:
        one = todo.pop()
        polling = polling or bool(one.polls or BIG_LOCK.intersection(one.functions))
        for other, _why in waited_for(look, one):
            if other.tid not in found and other.tid != thread.tid:
                found[other.tid] = other.cpu_ns
                todo.append(other)
    if polling:
        found |= {t.tid: look.time_ns for t in look.threads if _at_work(t)}
    return sorted(found.items())


def _at_work(thread: Thread) -> bool:
    """Whether a thread of the pool runs; without its name only its role ``other`` shows."""
    return thread.role in ("worker", "other") and not thread.blocked_in and not thread.kernel


def goes_on(look: Look, thread: Thread) -> bool:
    """Whether a thread waits for one that runs, or for the BQL while it is free: it takes turns."""
    if any(not other.blocked_in for other, _why in waited_for(look, thread)):
        return True
    if not BIG_LOCK.intersection(thread.functions):
        return False
    holder = look.thread(look.bql_holder or 0)
    return holder is None or holder.tid == thread.tid


def is_blocked_off(thread: Thread, ctx: int) -> bool:
    """Whether a thread sleeps where it cannot run its context's bottom halves.

    Its own loop, and an aio_poll() of that very context, are where it can.
    """
    if not thread.blocked_in or not thread.frames or not thread.whole:
        return False
    if thread.polls:
        return thread.polls[0].ctx not in (ctx, 0)
    return not _in_loop(thread)


def may_run_elsewhere(look: Look, context: Context, runner: Thread) -> bool:
    """Whether another thread polls a context just now, and so runs what is pending there.

    Whoever holds the BQL may poll the main one at any time, as long as it runs.
    """
    others = [thread for thread in look.threads if thread.tid != runner.tid]
    if any(thread.polls and thread.polls[0].ctx in (context.address, 0) for thread in others):
        return True
    holders = [thread for thread in others if may_hold_lock(look, thread)]
    return context.name == "main" and any(not h.blocked_in or not h.whole for h in holders)


def may_hold_lock(look: Look, thread: Thread) -> bool:
    """Whether a thread holds the BQL; where that cannot be read, whether it is one that could."""
    if look.bql_holder is None:
        return thread.role in ("vcpu", "migration")
    return thread.tid == look.bql_holder


def is_stuck(thread: Thread) -> bool:
    """A main thread that is not in its loop's wait: what it waits for stops everything."""
    return (
        thread.role == "main" and bool(thread.blocked_in) and thread.whole and not _in_loop(thread)
    )


def _in_loop(thread: Thread) -> bool:
    """The loop's own wait: ppoll() called by qemu_poll_ns() called by main_loop_wait().

    Any other named function in between is a callback, or the wait for the BQL. Without a timer
    to wait for, qemu_poll_ns() jumps to ppoll(), and is not on the stack.
    """
    loop = LOOP if thread.role == "main" else GLIB_LOOP
    functions = thread.functions
    if loop not in functions:
        return False
    inner = functions[: functions.index(loop)]
    polls = "qemu_poll_ns" in inner or thread.blocked_in in ("ppoll", "poll")
    return polls and all(
        MECHANICS.match(function) and function not in BIG_LOCK for function in inner
    )


def wait_of(look: Look, thread: Thread, depth: int = 2) -> str:
    """What a thread waits in, for whom, and what it polls meanwhile, as half a sentence."""
    if not thread.blocked_in:
        return "runs"
    frames = named_frames(thread)[:TOLD]
    text = f"waits in {' < '.join(frames)}" if frames else f"sleeps in {thread.blocked_in}()"
    polls = polled_context(look, thread)
    if polls is not None:
        text += f", polling {polls.quoted}"
    for other, why in waited_for(look, thread):
        more = wait_of(look, other, depth - 1) if depth > 1 else ""
        text += f", for {why} {other.label}" + (f", which {more}" if more else "")
    if look.bql_holder == thread.tid and thread.polls and thread.role != "main":
        text += ", holding the BQL"
    return text


def waited_for(look: Look, thread: Thread) -> list[tuple[Thread, str]]:
    """The threads that hold a waiting one up, with what they are to it, where it shows."""
    functions = set(thread.functions)
    found: list[tuple[Thread, str]] = []
    if functions & BIG_LOCK and look.bql_holder:
        holder = look.thread(look.bql_holder)
        if holder is not None and holder.tid != thread.tid:
            found.append((holder, "the BQL of"))
    elif "pause_all_vcpus" in functions and not thread.polls:
        # Each vCPU thread stops by itself when it gets back to its loop (cpus.c).
        found += [(t, "vCPU thread") for t in look.threads if t.role == "vcpu" and t.polls][:2]
    return found


def polled_context(look: Look, thread: Thread) -> Context | None:
    """The context of a thread's innermost aio_poll(), None when it is in none."""
    if not thread.polls:
        return None
    return look.context(thread.polls[0].ctx)


def named_frames(thread: Thread) -> list[str]:
    """The functions that tell why a thread waits: without the machinery, libc and the start."""
    return telling(thread.functions)


def telling(functions: list[str]) -> list[str]:
    functions = [f for f in functions if not MECHANICS.match(f)]
    stop = next((n for n, f in enumerate(functions) if f in STARTS), len(functions))
    return functions[:stop]
