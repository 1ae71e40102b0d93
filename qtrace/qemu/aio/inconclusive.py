"""Why a look cannot tell whether something is in the way: pure functions over a ``Look``.

That nothing was found shows nothing where what would show it could not be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qtrace.qemu.aio.findings import loop_threads
from qtrace.qemu.aio.model import Context, Look, Thread
from qtrace.qemu.aio.waits import (
    has_loop,
    in_loop,
    in_words,
    is_blocked_off,
    is_polling,
    may_hold_lock,
    may_run_elsewhere,
    waiting,
    waits_for_big_lock,
)

# Facts of the layout without which something pending, or who polls for it, may not be seen.
NEEDED = (
    "main_variable", "iohandler_variable", "context_tls", "ctx_bh_list", "ctx_bh_slice_list",
    "bh_flags", "bh_next", "poll_register",
)  # fmt: skip


def unclear(look: Look, name: str = "") -> list[str]:
    """What is not known and would be needed to say that nothing is in the way, in words.

    What ``explain`` finds nevertheless is true.

    Args:
        name: ask about bottom halves of that name only (of every name, and the main loop, when
            empty).
    """
    if look.ending is not None and not look.ending.sender:
        return []
    return list(dict.fromkeys([*_lists(look), *_threads(look, name)]))


def unclear_in_core(look: Look, name: str = "") -> list[str]:
    """The same of a core, which is one look: whether a loop's thread that runs comes back to its
    loop it cannot show."""
    reasons = unclear(look, name)
    if name or (look.ending is not None and not look.ending.sender):
        return reasons
    for thread in loop_threads(look):
        asleep = replace(thread, blocked_in="ppoll")
        runs = not thread.blocked_in and thread.whole and has_loop(look, thread)
        if runs and not in_loop(look, asleep):
            reasons.append(f"{thread.label} {in_words(look, thread)}: it may come back, or not")
    return reasons


def still_unclear(before: Look, now: Look, name: str = "") -> list[str]:
    """What two looks both leave open: of a program that runs, one may come at a bad moment."""
    reasons = unclear(now, name)
    earlier = unclear(before, name) if reasons else []
    return [reason for reason in reasons if reason in earlier]


def _lists(look: Look) -> Iterator[str]:
    if look.absent:
        yield f"stacks lead through code that is not here: {'; '.join(look.absent)}"
    facts = [fact for fact in look.missing if fact in NEEDED]
    if facts:
        yield f"the code of this QEMU does not show {', '.join(facts)}"
    if not look.contexts and look.dark:
        yield "the AioContexts cannot be read"
    elif look.dark:
        s = "s" if len(look.dark) > 1 else ""
        tids = ", ".join(map(str, look.dark))
        yield f"the AioContext of thread{s} {tids}, if there is one, cannot be read"
    for address in look.unread:
        yield f"the bottom halves of `{look.context(address).label}` cannot be read"


def _threads(look: Look, name: str) -> Iterator[str]:
    """What is not known of the threads on which it depends whether something is in the way."""
    known = {context.tid for context in look.contexts} | set(look.dark)
    if look.main_loop and not name and "main" not in [thread.role for thread in look.threads]:
        yield "the main thread is not there"
    for thread in look.threads:
        if thread.role == "iothread" and thread.tid not in known:
            yield f"the AioContext of {thread.label} was not found"
    if not name:
        for thread in loop_threads(look):
            yield from _wait(look, thread)
    for context in look.contexts:
        if not waiting(look, context, name):
            continue
        runner = look.thread(context.tid)
        if runner is None:
            yield f"thread {context.tid}, which runs `{context.label}`, is not there"
            continue
        yield from _wait(look, runner)
        blocked = is_blocked_off(look, runner, context.address)
        if blocked and may_run_elsewhere(look, context, runner):
            yield from _others(look, context, runner)


def _wait(look: Look, thread: Thread) -> Iterator[str]:
    """What of a thread's own wait is not known."""
    if thread.frames and not thread.whole:
        yield f"the stack of {thread.label} breaks off"
    elif is_polling(thread) and not thread.polls[0].ctx:
        yield f"which AioContext {thread.label} polls cannot be told"
    elif waits_for_big_lock(look, thread) and not _holder_known(look):
        yield f"{thread.label} waits for the BQL, and who holds it cannot be read"


def _others(look: Look, context: Context, runner: Thread) -> Iterator[str]:
    """What of those that may run it instead is not known."""
    for thread in look.threads:
        if thread.tid == runner.tid:
            continue
        if is_polling(thread) and not thread.polls[0].ctx:
            yield f"which AioContext {thread.label} polls cannot be told"
        if context.name != "main" or not may_hold_lock(look, thread):
            continue
        if thread.frames and not thread.whole:
            yield f"the stack of {thread.label} breaks off"
        elif look.bql_holder is None:
            yield "who holds the BQL cannot be read"


def _holder_known(look: Look) -> bool:
    return look.bql_holder == 0 or look.thread(look.bql_holder or 0) is not None
