"""Who is in the way of each pending bottom half: pure functions over a ``Look``.

One look shows how things stand; that they stay so needs a second one (``confirm``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from qtrace.target.aio.model import BottomHalf, Context, Ending, Job, Look, Thread
from qtrace.target.aio.waits import (
    goes_on,
    is_blocked_off,
    is_stuck,
    may_run_elsewhere,
    named_frames,
    polled_context,
    same_chain,
    telling,
    wait_of,
    waiting,
)

JOB_WAITS = frozenset({
    "job_finish_sync_locked", "job_finish_sync", "job_cancel_sync_all", "job_cancel_sync",
    "job_cancel_sync_locked", "job_complete_sync", "job_complete_sync_locked",
})  # fmt: skip


# How a thread dies, not why.
DYING = re.compile(r"_*(GI_)?_*(pthread_kill|raise|gsignal|abort|assert_fail|assert_perror_fail)")
# How many named frames of what died are told: assertions fail deep in code without names.
DEEP = 8
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
        halves = waiting(look, context, name)
        runner = look.thread(context.tid)
        if not halves or runner is None or not is_blocked_off(runner, context.address):
            continue
        if not goes_on(look, runner) and not may_run_elsewhere(look, context, runner):
            findings.append(_stranded(look, context, halves, runner))
    told = {finding.thread.tid for finding in findings}
    if not name and look.main_loop:
        findings += [
            _stuck(look, thread)
            for thread in look.threads
            if thread.tid not in told and is_stuck(thread) and not goes_on(look, thread)
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


def _stranded(look: Look, context: Context, halves: list[BottomHalf], runner: Thread) -> Finding:
    names = _listed([half.name or f"{half.cb:#x}" for half in halves])
    verb = "is" if len({half.name for half in halves}) == 1 else "are"
    told = wait_of(look, runner)
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
    return Finding(
        STRANDED, sentence, context, tuple(halves), runner, tuple(named_frames(runner)),
        polled_context(look, runner), proof=proof,
    )  # fmt: skip


def _job_in_circle(look: Look, halves: Iterable[BottomHalf], runner: Thread) -> Job | None:
    """The job that the runner waits for and whose next step is one of these bottom halves.

    Such a bottom half has its job as argument (job.c, migration/savevm.c). With several jobs
    it does not show which one the runner waits for.
    """
    if not JOB_WAITS.intersection(runner.functions) or len(look.jobs) != 1:
        return None
    arguments = {half.opaque for half in halves}
    return next((job for job in look.jobs if job.address in arguments), None)


def _crashed(look: Look, ended: Ending, thread: Thread) -> Finding:
    functions = thread.functions
    at = 1 + max((n for n, f in enumerate(functions) if DYING.match(f)), default=-1)
    polls = polled_context(look, thread)
    poll = thread.polls[0].frame if thread.polls else len(functions)
    inner = functions[at:poll]
    ran = inner.index(RUN) if RUN in inner else None
    told = telling(inner[:ran])
    where = " < ".join(told[:DEEP]) or "code without names"
    sentence = f"{ended.signal} ended it in {thread.label}: {where}"
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


def _listed(names: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``; what occurs several times with its number."""
    counted: dict[str, int] = {}
    for name in names:
        counted[name] = counted.get(name, 0) + 1
    parts = [f"{name} ({count} times)" if count > 1 else name for name, count in counted.items()]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
