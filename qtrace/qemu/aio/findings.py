"""Who is in the way of the event loops and of what is pending: pure functions over a ``Look``.

One look shows how things stand; that they stay so needs a second one (``confirm``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from qtrace.qemu.aio.mechanics import (
    CALLERS,
    DISPATCHERS,
    JIT_CODE,
    SPAWNING,
    is_unnamed,
    plain,
    telling,
)
from qtrace.qemu.aio.model import BottomHalf, Context, Ending, Job, Look, Thread
from qtrace.qemu.aio.waits import (
    JOIN,
    asleep_ns,
    at_work,
    chain,
    circle,
    command_in,
    frames_in_words,
    has_loop,
    in_loop,
    in_words,
    is_blocked_off,
    is_polling,
    is_unmoved,
    may_run_elsewhere,
    named_frames,
    polled_context,
    same_wait,
    wait_for,
    waiting,
)
from qtrace.roles import VCPU

JOB_WAITS = frozenset({
    "job_finish_sync_locked", "job_finish_sync", "job_cancel_sync_all", "job_cancel_sync",
    "job_cancel_sync_locked", "job_complete_sync", "job_complete_sync_locked",
})  # fmt: skip


# How a thread dies, not why.
DYING = re.compile(r"_*(GI_)?_*(pthread_kill|raise|gsignal|abort|assert_fail|assert_perror_fail)")
# How many named frames of what died are told: assertions fail deep in code without names.
DEEP = 8
RUN = "aio_bh_poll"
ROLES = {"vcpu": "vCPU thread "}
MAIN_SLEEPS = "the main loop sleeps, and will wait when it wakes up"

CRASHED, STRANDED, STUCK, COMPUTES = "crashed", "stranded", "stuck", "computes"
# Of a block request (qtrace/inspection): the same in two looks, and nobody moves who has it.
REQUEST_STUCK = "request-stuck"
SEVERITY = (CRASHED, STUCK, REQUEST_STUCK, STRANDED, COMPUTES)
# Where somebody moves whom a thread waits for, or the thread itself wakes up and polls on, looks
# must be so far apart: on a crowded host a sound guest may stand still for half a second.
MOVING_NS = 2_000_000_000


@dataclass(frozen=True)
class Finding:
    """Why something does not go on.

    Attributes:
        kind: ``crashed`` (a core of what a bug ended), ``stuck`` (a main loop or IOThread that
            does not come back), ``stranded`` (bottom halves that nobody can run, and that its
            thread waits for) or ``computes`` (a loop's thread runs in one and the same callback:
            neither clear nor stuck).
        sentence: all of it, for people.
        context: the bottom halves' context, or the one that the stuck thread polls.
        bottom_halves: those that are stranded; of ``stuck`` those that merely queue behind it.
        thread: the only thread that could run them.
        waits_in: the named functions of its wait, leaf first.
        polls: the context that it polls meanwhile, None when it polls none.
        command: the monitor command that it is in, as ``QMP stop``, else empty.
        looks: how many looks show it; what one look shows may be over in a moment.
        at_least_ns: for how long it has been so, at least; 0 where one look shows it.
        proof: what shows that it stays so, empty while nothing does.
    """

    kind: str
    sentence: str
    context: Context
    bottom_halves: tuple[BottomHalf, ...]
    thread: Thread
    waits_in: tuple[str, ...]
    polls: Context | None
    command: str = ""
    looks: int = 1
    at_least_ns: int = 0
    proof: str = ""


def loop_threads(look: Look) -> list[Thread]:
    """The threads on whose loops everything depends: main first, then the IOThreads."""
    owners = {context.tid for context in look.contexts}
    found = [t for t in look.threads if t.role == "main" and (look.main_loop or t.tid in owners)]
    return found + [t for t in look.threads if t.role == "iothread" and t.tid in owners]


def suspects(look: Look) -> list[Thread]:
    """Whose threads are to be looked at again: those of loops that are not in them, and who may
    keep the BQL."""
    away = [thread for thread in loop_threads(look) if not in_loop(look, thread)]
    keeper = keeps_big_lock(look)
    return away if keeper is None else [*away, keeper]


def keeps_big_lock(look: Look) -> Thread | None:
    """Who holds the BQL while nobody waits for it who is bound to come back to a loop: the main
    loop sleeps in its poll, and will wait when it wakes up.

    Who polls is left out, as it wakes up again and again: what it waits for is a request, or a
    bottom half.
    """
    keeper = look.thread(look.bql_holder or 0)
    if keeper is None or not look.main_loop or is_polling(keeper):
        return None
    loops = loop_threads(look)
    away = [thread for thread in loops if not in_loop(look, thread)]
    if keeper in loops or any(keeper in chain(look, thread) for thread in away):
        return None
    return keeper


def explain(look: Look, name: str = "") -> list[Finding]:
    """What is in the way now, the worst first; empty when nothing is.

    Args:
        name: only bottom halves of that name (every context's, and stuck threads, when empty).
    """
    ended = look.ending
    if ended is not None and not ended.sender:
        # What waited then, waits for ever: it explains nothing.
        dead = look.thread(ended.tid)
        return [] if dead is None else [_crashed(look, ended, dead)]
    if name:
        return stranded(look, name)
    findings = []
    loops = loop_threads(look)
    for thread in loops:
        if thread.blocked_in and thread.whole and not in_loop(look, thread):
            findings += _in_its_way(look, thread)
    others = [half.ctx for half in look.bottom_halves]
    for context in look.contexts:
        runner = look.thread(context.tid)
        # One that polls where it waits (qemu-img) stands where something pending shows it.
        told = [finding.thread for finding in findings]
        own = runner in loops and runner is not None and has_loop(look, runner)
        if context.address in others and runner is not None and not own and runner not in told:
            halves = _blocked(look, context, runner)
            findings += [_stuck(look, runner, halves)] if halves else []
    keeper = keeps_big_lock(look)
    if keeper is not None and keeper.blocked_in and keeper.whole:
        findings.append(_sleeping_with_big_lock(look, keeper))
    return sorted(findings, key=lambda finding: SEVERITY.index(finding.kind))


def stranded(look: Look, name: str = "") -> list[Finding]:
    """The pending bottom halves that nobody can run now, a finding for each context, whatever
    else is the cause."""
    findings = []
    for context in look.contexts:
        runner = look.thread(context.tid)
        halves = _blocked(look, context, runner, name) if runner else []
        if runner and halves:
            findings.append(_stranded(look, context, halves, runner))
    return findings


def confirm(
    before: Look,
    now: Look,
    name: str = "",
    between: Mapping[int, Sequence[Thread]] | None = None,
) -> list[Finding]:
    """The findings of the second look that the first one shows too.

    The thread sat in one and the same wait: it was given no processor in between, or it polls
    (a nested poll wakes up and goes on polling). Where it does, or where those that it waits for
    go on, two seconds must lie between the looks. Looks at a process that is held prove nothing.

    Args:
        between: sightings of threads between the looks, by tid: who was seen to sleep elsewhere
            did not sit in one wait.
    """
    if before.stopped or now.stopped:
        return []
    findings = explain(now, name)
    if not findings:
        return []
    earlier = {(f.kind, f.thread.tid, f.context.address): f for f in explain(before, name)}
    apart_ns = now.time_ns - before.time_ns
    found = []
    for finding in findings:
        first = earlier.get((finding.kind, finding.thread.tid, finding.context.address))
        thread = finding.thread
        sightings = (between or {}).get(thread.tid, ())
        if first is None or not stays(before, now, thread, sightings):
            continue
        if not is_proven(before, now, thread):
            continue
        still = {(h.address, h.cb, h.opaque) for h in first.bottom_halves}
        halves = [h for h in finding.bottom_halves if (h.address, h.cb, h.opaque) in still]
        if finding.kind == STRANDED and len(halves) < len(finding.bottom_halves):
            if not halves:
                continue
            finding = _stranded(now, finding.context, halves, finding.thread)
        found.append(
            replace(
                finding,
                looks=2,
                at_least_ns=max(apart_ns, asleep_ns(now, finding.thread)),
                proof=_proof(before, now, finding),
            )
        )
    return found


def stays(before: Look, now: Look, thread: Thread, sightings: Sequence[Thread] = ()) -> bool:
    """Whether a thread sat in one and the same wait at two looks, as far as they show it.

    A thread that takes a lock again and again is always found there: unless it polls, it must
    not have run at all.
    """
    earlier = before.thread(thread.tid)
    if earlier is None or not same_wait(earlier, thread):
        return False
    if any(one.blocked_in and not same_wait(one, thread) for one in sightings):
        return False
    return is_unmoved(earlier, thread) or is_polling(thread)


def is_proven(before: Look, now: Look, thread: Thread) -> bool:
    """Whether the looks are far enough apart to say so of a thread that ``stays``."""
    earlier = before.thread(thread.tid)
    unmoved = earlier is not None and (is_unmoved(earlier, thread) or not thread.cpu_ns)
    if unmoved and not goes_on(before, now, thread):
        return True
    return now.time_ns - before.time_ns >= MOVING_NS


def goes_on(before: Look, now: Look, thread: Thread) -> bool:
    """Whether one of those that a thread waits for, to the end of the chain, moved between two
    looks, or may have: a worker at work whom a poll may wait for, a child that is being started."""
    members = chain(now, thread)
    if any(SPAWNING.match(f) for one in (thread, *members) for f in one.functions):
        return True
    polls = any(is_polling(one) for one in [thread, *members])
    if polls and (at_work(before) or at_work(now)):
        return True
    pairs = [(before.thread(member.tid), member) for member in members]
    return any(earlier is None or not is_unmoved(earlier, member) for earlier, member in pairs)


def _proof(before: Look, now: Look, finding: Finding) -> str:
    seconds = (now.time_ns - before.time_ns) / 1e9
    text = f"seen twice, {seconds:.1f} s apart, with the same waiting frames"
    earlier = before.thread(finding.thread.tid)
    if earlier is not None and is_unmoved(earlier, finding.thread):
        text += "; it was given no processor in between"
        asleep = asleep_ns(now, finding.thread)
        if asleep > now.time_ns - before.time_ns:
            text += f", and has not run for at least {asleep / 1e9:.1f} s"
    return text


def _in_its_way(look: Look, thread: Thread) -> list[Finding]:
    """A loop's thread that is not in its loop: what it waits for, and what queues behind it."""
    queued = [
        (context, halves)
        for context in look.contexts
        if context.tid == thread.tid and (halves := _blocked(look, context, thread))
    ]
    for context, halves in queued:
        needed = _needed(look, halves, thread)
        if needed:
            others = [h for _context, more in queued for h in more if h not in needed]
            return [_stranded(look, context, needed, thread, others)]
    return [_stuck(look, thread, [half for _context, halves in queued for half in halves])]


def _blocked(look: Look, context: Context, runner: Thread, name: str = "") -> list[BottomHalf]:
    """What is pending in a context and can be run by nobody now."""
    if not is_blocked_off(look, runner, context.address):
        return []
    if may_run_elsewhere(look, context, runner):
        return []
    return waiting(look, context, name)


def _needed(look: Look, halves: Iterable[BottomHalf], runner: Thread) -> list[BottomHalf]:
    """Those that a job's next step is while their thread waits for a job.

    Such a bottom half has its job as argument (job.c, migration/savevm.c).
    """
    if not JOB_WAITS.intersection(runner.functions):
        return []
    jobs = {job.address for job in look.jobs or ()}
    return [half for half in halves if half.opaque in jobs or half.name.startswith("snapshot_")]


def _stranded(
    look: Look,
    context: Context,
    halves: list[BottomHalf],
    runner: Thread,
    others: Sequence[BottomHalf] = (),
) -> Finding:
    names = _listed([half.label for half in halves])
    verb = "is" if len({half.name for half in halves}) == 1 else "are"
    told = in_words(look, runner)
    it = "it" if verb == "is" else "them"
    sentence = (
        f"{names} {verb} stranded in {context.quoted}: the only thread that runs {it}, "
        f"{runner.label}, {told}"
    )
    job = _job_in_circle(look, halves, runner)
    proof = ""
    if job is not None:
        sentence += f"; job '{job.id}', which it waits for, needs just this bottom half to go on"
        proof = f"a circle: {runner.label} waits for job '{job.id}', whose next step is pending"
    sentence += "".join(f"; {part}" for part in _behind(look, others))
    return Finding(
        STRANDED, sentence, context, tuple(halves), runner, tuple(named_frames(runner)),
        polled_context(look, runner), command_in(runner), proof=proof,
    )  # fmt: skip


def _job_in_circle(look: Look, halves: Iterable[BottomHalf], runner: Thread) -> Job | None:
    """The job that the runner waits for and whose next step is one of these bottom halves.

    With several jobs it does not show which one the runner waits for.
    """
    if not JOB_WAITS.intersection(runner.functions) or len(look.jobs or ()) != 1:
        return None
    arguments = {half.opaque for half in halves}
    return next((job for job in look.jobs or () if job.address in arguments), None)


def _crashed(look: Look, ended: Ending, thread: Thread) -> Finding:
    functions = thread.functions
    at = 1 + max((n for n, f in enumerate(functions) if DYING.match(f)), default=-1)
    polls = polled_context(look, thread)
    poll = thread.polls[0].frame if thread.polls else len(functions)
    inner = functions[at:poll]
    ran = inner.index(RUN) if RUN in inner else None
    told = telling(inner[:ran])
    bottom_half = _run_by(inner, ran)
    if len(told) > 1 and told[-1] == bottom_half:
        del told[-1]
    where = " < ".join(told[:DEEP])
    if bottom_half and told != [bottom_half]:
        where += f"{', in ' if where else ''}{bottom_half}"
    sentence = f"{ended.signal} ended it in {thread.label}: {where or 'code without names'}"
    if polls is not None:
        sentence += ", a bottom half that it ran" if ran is not None else ""
        sentence += f" inside aio_poll() of {polls.quoted}"
        under = " < ".join(telling(functions[poll + 1 :])[:2])
        sentence += f", called by {under}" if under else ""
    if polls is not None and look.bql_holder not in (None, thread.tid):
        sentence += ", without the BQL"
    if not thread.whole:
        sentence += ", where its stack breaks off"
    if ended.message:
        sentence += f"; {ended.message}"
    # What QEMU was about to do next: often the other half of what went wrong.
    if pending := [half for half in look.bottom_halves if half.will_run]:
        verb = "was" if len(pending) == 1 else "were"
        sentence += f"; {_by_context(look, pending)} {verb} pending"
    return Finding(
        CRASHED, sentence, polls or Context(0, ""), (), thread, tuple(told), polls,
        proof=f"the core was written for this {ended.signal}",
    )  # fmt: skip


def _run_by(functions: Sequence[str], run: int | None) -> str:
    """The bottom half's function, just below aio_bh_poll(); empty when none runs or it has no
    name."""
    called = [f for f in functions[:run] if f not in CALLERS] if run is not None else []
    return "" if not called or is_unnamed(called[-1]) else called[-1]


def _stuck(look: Look, thread: Thread, queued: Sequence[BottomHalf]) -> Finding:
    polls = polled_context(look, thread)
    command = command_in(thread)
    kind = COMPUTES if _awaits_work(look, thread) else STUCK
    sentence = f"{_loop_of(look, thread)} does not run: {thread.label}"
    sentence += f", in {command}," if command else ""
    sentence += f" {in_words(look, thread)}"
    rest = [*_circle_in_words(look, thread), *_meanwhile(look, thread), *_behind(look, queued)]
    sentence += "".join(f"; {part}" for part in rest)
    return Finding(
        kind, sentence, polls or Context(0, ""), tuple(queued), thread,
        tuple(named_frames(thread)), polls, command,
    )  # fmt: skip


def _sleeping_with_big_lock(look: Look, keeper: Thread) -> Finding:
    command = command_in(keeper)
    sentence = f"nobody gets the BQL: {ROLES.get(keeper.role, '')}{keeper.label}"
    sentence += f", in {command}," if command else ""
    sentence += f" {in_words(look, keeper)}; {MAIN_SLEEPS}"
    return Finding(
        STUCK, sentence, Context(0, ""), (), keeper, tuple(named_frames(keeper)), None, command
    )


def _awaits_work(look: Look, thread: Thread) -> bool:
    """Whether it has handed its work to a thread, which is at it, and waits for the end of that
    (qcrypto_pbkdf2_count_iters() does so)."""
    wait = wait_for(look, thread)
    return wait.kind == JOIN and any(not other.blocked_in for other in wait.whom)


def _loop_of(look: Look, thread: Thread) -> str:
    if thread.role == "main":
        return "the main loop" if has_loop(look, thread) else "the program"
    own = next((c for c in look.contexts if c.tid == thread.tid), None)
    return f"the loop of {own.quoted}" if own else "the loop"


def _circle_in_words(look: Look, thread: Thread) -> list[str]:
    threads = circle(look, thread)
    if not threads:
        return []
    return [" waits for ".join(one.label for one in [*threads, thread]) + ": a deadlock"]


def _meanwhile(look: Look, thread: Thread) -> list[str]:
    """What others wait for outside while a thread polls, or one that it waits for: perhaps it."""
    members = [thread, *chain(look, thread)]
    if not any(is_polling(one) for one in members):
        return []
    others = [t for t in look.threads if t.outside and t not in members and t.role != "vcpu"]
    return [f"meanwhile {other.label} {in_words(look, other)}" for other in others]


def _behind(look: Look, queued: Sequence[BottomHalf]) -> list[str]:
    """What merely queues behind the wait."""
    listed = _by_context(look, queued)
    return [f"behind it wait {listed}"] if listed else []


def _by_context(look: Look, halves: Sequence[BottomHalf]) -> str:
    """``job_exit in `main`, a and b in `iohandler```."""
    parts = []
    for context in look.contexts:
        names = [half.label for half in halves if half.ctx == context.address]
        if names:
            parts.append(f"{_listed(names)} in {context.quoted}")
    return ", ".join(parts)


def computing(
    look: Look, thread: Thread, sightings: Sequence[Thread], over_ns: int
) -> Finding | None:
    """That a loop's thread was in one and the same callback at every sighting; None when not.

    Args:
        sightings: of this thread, over ``over_ns``, each with its whole stack.
    """
    shared = _shared_end(sightings)
    where = _callback(plain(shared))
    if not where:
        return None
    command = command_in(replace(thread, frames=shared))
    doing = "computes" if any(not one.blocked_in for one in sightings) else "works"
    seconds = over_ns / 1e9
    sentence = (
        f"{_loop_of(look, thread)} does not run: {thread.label} {doing}"
        + (f" for {command}" if command else "")
        + f" in {frames_in_words(where)}, for at least {seconds:.1f} s"
    )
    return Finding(
        COMPUTES, sentence, Context(0, ""), (), thread, tuple(where), None, command, looks=2,
        at_least_ns=over_ns,
        proof=f"{len(sightings)} sightings over {seconds:.1f} s have these frames in common",
    )  # fmt: skip


def keeping_big_lock(
    keeper: Thread, stacks: Sequence[Thread], sightings: int, over_ns: int
) -> Finding | None:
    """That a thread held the BQL at every sighting, in one and the same call; None when not in one.

    Args:
        stacks: of this thread meanwhile, each whole.
        sightings: how often it was seen to hold the BQL over ``over_ns``, and never not to.
    """
    inner = _one_call(stacks)
    if not inner:
        return None
    seconds = over_ns / 1e9
    outside = f", {keeper.outside}" if keeper.outside else ""
    sentence = (
        f"nobody gets the BQL: {ROLES.get(keeper.role, '')}{keeper.label} holds it whenever it is "
        f"looked at, in {frames_in_words(inner)}{outside}; {MAIN_SLEEPS}"
    )
    return Finding(
        STUCK, sentence, Context(0, ""), (), keeper, tuple(inner), None, looks=2,
        at_least_ns=over_ns,
        proof=f"it held the BQL at each of {sightings} sightings over {seconds:.1f} s, and its "
        f"{len(stacks)} stacks in that time have these frames in common",
    )  # fmt: skip


def may_come_and_go(stacks: Sequence[Thread]) -> bool:
    """Whether a thread that holds the BQL was seen in different calls of the guest's code."""
    return len(stacks) > 1 and not _one_call(stacks)


def _one_call(stacks: Sequence[Thread]) -> list[str]:
    """The functions, leaf first, of the one call that all stacks of a thread were in: for a vCPU
    what its loop, or the guest's code, had called."""
    where = telling(plain(_shared_end(stacks)))
    loop = next((n for n, name in enumerate(where) if name in VCPU), len(where))
    return [name for name in where[:loop] if name != JIT_CODE]


def goes_round(sightings: Sequence[Thread]) -> bool:
    """Whether a loop's thread was seen at different places of its loop, or in different
    callbacks: it came back in between. Who is only ever seen to wait for the BQL may get it
    again and again, or never."""
    different = len({one.frames for one in sightings}) > 1
    return different and is_in_no_callback(sightings)


def is_in_no_callback(sightings: Sequence[Thread]) -> bool:
    """Whether a loop's thread was seen, and all that its stacks have in common is the loop."""
    return bool(sightings) and not _callback(plain(_shared_end(sightings)))


def _callback(functions: list[str]) -> list[str]:
    """What the innermost dispatcher had called, as it is told; empty when nobody.

    Where the loop itself waits, for its lock or for events, only machinery lies nearer to the
    leaf; one nameless function may be of the dispatcher's own.
    """
    at = next((n for n, f in enumerate(functions) if f in DISPATCHERS), 0)
    inner = functions[:at]
    own = 0 if at and functions[at] in CALLERS else 1
    if sum(map(is_unnamed, inner)) > own:
        return telling(inner) or inner[:1]
    return telling(inner)


def _shared_end(sightings: Sequence[Thread]) -> tuple[str, ...]:
    """The frames, leaf first, that all stacks have in common from the thread's start on."""
    stacks = [one.frames for one in sightings]
    if not stacks:
        return ()
    shortest = min(map(len, stacks))
    count = next(
        (n for n in range(shortest) if len({stack[-1 - n] for stack in stacks}) > 1), shortest
    )
    return tuple(stacks[0][len(stacks[0]) - count :])


def _listed(names: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``; what occurs several times with its number."""
    counted: dict[str, int] = {}
    for name in names:
        counted[name] = counted.get(name, 0) + 1
    parts = [f"{name} ({count} times)" if count > 1 else name for name, count in counted.items()]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
