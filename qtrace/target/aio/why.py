"""Who is in the way of each pending bottom half: pure functions over a ``Look``.

One look shows how things stand; that they stay so needs a second one (``confirm``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from qtrace.target.aio.model import IDLE, BottomHalf, Context, Ending, Job, Look, Thread

# How many named frames of a wait are told.
TOLD = 4
# ... and of what died: assertions fail deep in code without names.
DEEP = 8
# How a thread waits, not why: left out where a wait is told.
MECHANICS = re.compile(
    r"_*(ppoll|poll|g_poll|epoll_p?wait|syscall|futex|clone|start_thread|lll_)|_*pthread_|"
    r"qemu_(poll_ns|cond_(timed)?wait|mutex_lock|rec_mutex_lock|sem_)|fdmon_|aio_poll$|"
    r"(qemu_mutex_lock_iothread_impl|bql_lock_impl|qemu_cond_wait_(iothread|bql))$|"
    r"_*(libc_start|GI_)|[^@]*@0x|\?|(__)?(ioctl|read|write|nanosleep|clock_nanosleep)$"
)
BIG_LOCK = frozenset({"bql_lock_impl", "qemu_mutex_lock_iothread_impl"})
LOOP = "main_loop_wait"
STARTS = frozenset({"main", "_start", "qemu_default_main", "qemu_main"})
JOB_WAITS = frozenset({
    "job_finish_sync_locked", "job_finish_sync", "job_cancel_sync_all", "job_cancel_sync",
    "job_cancel_sync_locked", "job_complete_sync", "job_complete_sync_locked",
})  # fmt: skip

# How a thread dies, not why.
DYING = re.compile(r"_*(GI_)?_*(pthread_kill|raise|gsignal|abort|assert_fail|assert_perror_fail)")
RUN = "aio_bh_poll"

CRASHED, STRANDED, STUCK = "crashed", "stranded", "stuck"


@dataclass(frozen=True)
class Finding:
    """Why something does not go on.

    Attributes:
        kind: ``crashed`` (a core of what a bug ended), ``stranded`` (bottom halves that nobody
            can run) or ``stuck`` (a thread that waits inside a nested poll or for others, with
            nothing pending to show for it).
        sentence: all of it, for people.
        context: the bottom halves' context, or the one that the stuck thread polls.
        bottom_halves: those that are stranded; empty for ``stuck``.
        thread: the only thread that could run them.
        waits_in: the named functions of its wait, leaf first.
        polls: the context that it polls meanwhile, None when it polls none.
        looks: how many looks show it; what one look shows may be over in a moment.
        proof: what shows that it stays so, empty while nothing does.
    """

    kind: str
    sentence: str
    context: Context
    bottom_halves: tuple[BottomHalf, ...]
    thread: Thread
    waits_in: tuple[str, ...]
    polls: Context | None
    looks: int = 1
    proof: str = ""


def explain(look: Look, name: str = "") -> list[Finding]:
    """What is in the way now; empty when nothing is.

    Args:
        name: only bottom halves of that name (every context's, and stuck threads, when empty).
    """
    ended = look.ending
    if ended is not None and not ended.sender:
        # What waited then, waits for ever: it explains nothing.
        dead = look.thread(ended.tid)
        return [] if dead is None else [_crashed(look, ended, dead)]
    findings = []
    for context in look.contexts:
        waiting = [
            half
            for half in look.bottom_halves
            if half.ctx == context.address
            and half.will_run
            and not half.flags & IDLE
            and name in ("", half.name)
        ]
        runner = look.thread(context.tid)
        if not waiting or runner is None or not is_blocked_off(runner, context.address):
            continue
        if not goes_on(look, runner) and not may_run_elsewhere(look, context, runner):
            findings.append(_stranded(look, context, waiting, runner))
    told = {finding.thread.tid for finding in findings}
    if not name and look.main_loop:
        findings += [
            _stuck(look, thread)
            for thread in look.threads
            if thread.tid not in told and _is_stuck(thread) and not goes_on(look, thread)
        ]
    return findings


def confirm(before: Look, now: Look, name: str = "") -> list[Finding]:
    """The findings of the second look that the first one shows too: same thread, same frames,
    the same bottom halves still pending. Looks at a stopped process confirm nothing."""
    if before.stopped or now.stopped:
        return []
    findings = explain(now, name)
    if not findings:
        return []
    earlier = {(f.kind, f.thread.tid, f.context.address): f for f in explain(before, name)}
    seconds = (now.time_ns - before.time_ns) / 1e9
    found = []
    for finding in findings:
        first = earlier.get((finding.kind, finding.thread.tid, finding.context.address))
        if first is None or not same_chain(before, now, finding.thread):
            continue
        still = {(h.address, h.cb, h.opaque) for h in first.bottom_halves}
        halves = [h for h in finding.bottom_halves if (h.address, h.cb, h.opaque) in still]
        if finding.kind == STRANDED and not halves:
            continue
        if finding.kind == STRANDED:
            finding = _stranded(now, finding.context, halves, finding.thread)
        proof = f"seen twice, {seconds:.1f} s apart, with the same waiting frames"
        found.append(replace(finding, looks=2, proof=proof))
    return found


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
    """Whether a thread waits for the BQL while it is free or its holder runs: it takes turns."""
    if not BIG_LOCK.intersection(thread.functions):
        return False
    holder = look.thread(look.bql_holder or 0)
    return holder is None or holder.tid == thread.tid or not holder.blocked_in


def is_blocked_off(thread: Thread, ctx: int) -> bool:
    """Whether a thread sleeps where it cannot run a context's bottom halves.

    Its own main loop, and an aio_poll() of that very context, are where it can.
    """
    if not thread.blocked_in or not thread.frames or not thread.whole:
        return False
    if thread.polls:
        return thread.polls[0].ctx not in (ctx, 0)
    return not _in_main_loop(thread)


def may_run_elsewhere(look: Look, context: Context, runner: Thread) -> bool:
    """Whether another thread polls a context just now, and so runs what is pending there.

    Whoever holds the BQL may poll the main one at any time, as long as it runs.
    """
    others = [thread for thread in look.threads if thread.tid != runner.tid]
    if any(thread.polls and thread.polls[0].ctx in (context.address, 0) for thread in others):
        return True
    holders = [thread for thread in others if thread.tid == look.bql_holder]
    return context.name == "main" and any(not holder.blocked_in for holder in holders)


def _in_main_loop(thread: Thread) -> bool:
    """The loop's own wait: ppoll() called by qemu_poll_ns() called by main_loop_wait().

    Any other named function in between is a callback, or the wait for the BQL.
    """
    functions = thread.functions
    if LOOP not in functions:
        return False
    inner = functions[: functions.index(LOOP)]
    return "qemu_poll_ns" in inner and all(
        MECHANICS.match(function) and function not in BIG_LOCK for function in inner
    )


def _is_stuck(thread: Thread) -> bool:
    """A main thread that is not in its loop's wait: what it waits for stops everything."""
    return (
        thread.role == "main"
        and bool(thread.blocked_in)
        and thread.whole
        and not _in_main_loop(thread)
    )


def _stranded(look: Look, context: Context, halves: list[BottomHalf], runner: Thread) -> Finding:
    names = _listed([half.name or f"{half.cb:#x}" for half in halves])
    verb = "is" if len({half.name for half in halves}) == 1 else "are"
    told = wait_of(look, runner)
    it = "it" if verb == "is" else "them"
    sentence = (
        f"{names} {verb} stranded in `{context.label}`: the only thread that runs {it}, "
        f"{runner.label}, {told}"
    )
    job = _job_in_circle(look, halves, runner)
    proof = ""
    if job is not None:
        sentence += f"; job '{job.id}', which it waits for, needs just this bottom half to go on"
        proof = f"a circle: {runner.label} waits for job '{job.id}', whose next step is pending"
    return Finding(
        STRANDED, sentence, context, tuple(halves), runner, tuple(named_frames(runner)),
        polled_context(look, runner), proof=proof,
    )  # fmt: skip


def _crashed(look: Look, ended: Ending, thread: Thread) -> Finding:
    functions = thread.functions
    at = 1 + max((n for n, f in enumerate(functions) if DYING.match(f)), default=-1)
    polls = polled_context(look, thread)
    poll = thread.polls[0].frame if thread.polls else len(functions)
    inner = functions[at:poll]
    ran = inner.index(RUN) if RUN in inner else None
    told = _named(inner[:ran])
    where = " < ".join(told[:DEEP]) or "code without names"
    sentence = f"{ended.signal} ended it in {thread.label}: {where}"
    if polls is not None:
        sentence += ", a bottom half that it ran" if ran is not None else ""
        sentence += f" inside aio_poll() of `{polls.label}`"
        under = " < ".join(_named(functions[poll + 1 :])[:2])
        sentence += f", called by {under}" if under else ""
    if polls is not None and look.bql_holder not in (None, thread.tid):
        sentence += ", without the BQL"
    if ended.message:
        sentence += f"; {ended.message}"
    return Finding(
        CRASHED, sentence, polls or Context(0, ""), (), thread, tuple(told), polls,
        proof=f"the core was written for this {ended.signal}",
    )  # fmt: skip


def _stuck(look: Look, thread: Thread) -> Finding:
    polls = polled_context(look, thread)
    sentence = f"the main loop does not run: {thread.label} {wait_of(look, thread)}"
    return Finding(
        STUCK, sentence, polls or Context(0, ""), (), thread, tuple(named_frames(thread)), polls
    )


def wait_of(look: Look, thread: Thread, depth: int = 2) -> str:
    """What a thread waits in, for whom, and what it polls meanwhile, as half a sentence."""
    if not thread.blocked_in:
        return "runs"
    frames = named_frames(thread)[:TOLD]
    text = f"waits in {' < '.join(frames)}" if frames else f"sleeps in {thread.blocked_in}()"
    polls = polled_context(look, thread)
    if polls is not None:
        text += f", polling `{polls.label}`"
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
    ctx = thread.polls[0].ctx
    return look.context(ctx) if ctx else Context(0, "a context that cannot be told")


def named_frames(thread: Thread) -> list[str]:
    """The functions that tell why a thread waits: without the machinery, libc and the start."""
    return _named(thread.functions)


def _named(functions: list[str]) -> list[str]:
    functions = [f for f in functions if not MECHANICS.match(f)]
    stop = next((n for n, f in enumerate(functions) if f in STARTS), len(functions))
    return functions[:stop]


def _job_in_circle(look: Look, halves: Iterable[BottomHalf], runner: Thread) -> Job | None:
    """The job that the runner waits for and whose next step is one of these bottom halves.

    Such a bottom half has its job as argument (job.c, migration/savevm.c). With several jobs
    it does not show which one the runner waits for.
    """
    if not JOB_WAITS.intersection(runner.functions) or len(look.jobs) != 1:
        return None
    arguments = {half.opaque for half in halves}
    return next((job for job in look.jobs if job.address in arguments), None)


def _listed(names: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``; what occurs several times with its number."""
    counted: dict[str, int] = {}
    for name in names:
        counted[name] = counted.get(name, 0) + 1
    parts = [f"{name} ({count} times)" if count > 1 else name for name, count in counted.items()]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
