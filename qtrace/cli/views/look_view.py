"""A look at a QEMU, for people and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from qtrace.cli.views.verdict_view import inert
from qtrace.inspection.answer import Answer, slow_words
from qtrace.inspection.request_proof import RequestFinding
from qtrace.inspection.waiting_graph import WaitingGraph
from qtrace.qemu.aio.findings import SEVERITY, Finding
from qtrace.qemu.aio.model import BottomHalf, Context, Ending, Job, Look, Thread
from qtrace.qemu.aio.waits import asleep_ns, named_frames

Name = Callable[[int], str]
Shown = Callable[[str], str]
Document = dict[str, Any]

FINDING, NOTE = "bold red", "yellow"


def look_json(look: Look, name: Name, ages_ns: dict[int, int]) -> Document:
    """Everything of a look; addresses in hex, stacks from the leaf. What is not known, because a
    fact of the layout is missing or a list cannot be read, is null, never empty.

    Args:
        name: the name of an address in the target.
        ages_ns: how long a bottom half has been pending, by its address, where it is known.
    """
    return {
        "time_ns": look.time_ns,
        "stopped": look.stopped,
        "held": inert(look.held) or None,
        "contexts": [
            {
                "name": inert(context.name),
                "ctx": f"{context.address:#x}",
                "tid": context.tid or None,
                "bottom_halves": None
                if context.address in look.unread
                else [
                    _bottom_half(half, name, ages_ns)
                    for half in look.bottom_halves
                    if half.ctx == context.address
                ],
                "handlers": None
                if context.address in look.unread_handlers
                else [
                    {
                        "fd": handler.fd,
                        "io_read": _named(handler.io_read, name),
                        "io_write": _named(handler.io_write, name),
                        "opaque": _hex(handler.opaque),
                        "deleted": handler.deleted,
                    }
                    for handler in look.handlers
                    if handler.ctx == context.address
                ],
                "scheduled_coroutines": None
                if context.address in look.unread_coroutines
                else [
                    {"co": f"{co.address:#x}", "entry": name(co.entry)}
                    for co in look.scheduled
                    if co.ctx == context.address
                ],
            }
            for context in look.contexts
        ],
        "threads": [_thread(look, thread) for thread in look.threads],
        "jobs": None
        if look.jobs is None
        else [
            {
                "id": inert(job.id),
                "type": job.kind or None,
                "status": job.status or None,
                "co": f"{job.co:#x}" if job.co else None,
                "awake": job.co in look.awake,
                "tid": look.awake.get(job.co or 0) or None,
                "stack": [inert(f) for f in look.coroutine_frames.get(job.co or 0, ())],
            }
            for job in look.jobs
        ],
        "ending": {
            "signal": look.ending.signal,
            "tid": look.ending.tid,
            "sent_by_pid": look.ending.sender or None,
            "message": inert(look.ending.message) or None,
        }
        if look.ending
        else None,
        "bql": {"known": look.bql_holder is not None, "holder": look.bql_holder or None},
        "torn": list(look.torn),
        "missing": list(look.missing),
        "absent_files": [inert(file) for file in look.absent],
        "debug_info_differs": list(look.differing),
    }


def loop_finding_json(finding: Finding) -> Document:
    """A finding of threads with its evidence."""
    return {
        "verdict": finding.kind,
        "sentence": inert(finding.sentence),
        "context": inert(finding.context.name) or None,
        "bottom_halves": [inert(half.label) for half in finding.bottom_halves],
        "tid": finding.thread.tid,
        "role": finding.thread.role,
        "polls": inert(finding.polls.label) if finding.polls else None,
        "waits_in": [inert(function) for function in finding.waits_in],
        "command": finding.command or None,
        "looks": finding.looks,
        "at_least_ns": finding.at_least_ns or None,
        "proof": inert(finding.proof) or None,
    }


def waiting_json(graph: WaitingGraph) -> Document:
    """Who waits for whom, by keys."""
    return {
        "parties": [
            {"key": inert(one.key), "kind": one.kind, "label": inert(one.label),
             "does": inert(one.does), "found": one.found}
            for one in graph.parties
        ],
        "edges": [
            {"who": inert(one.who), "whom": inert(one.whom), "what": inert(one.what)}
            for one in graph.edges
        ],
    }  # fmt: skip


def _bottom_half(half: BottomHalf, name: Name, ages_ns: dict[int, int]) -> Document:
    return {
        "name": inert(half.name),
        "bh": f"{half.address:#x}",
        "callback": _hex(half.cb),
        "callback_name": _named(half.cb, name),
        "opaque": _hex(half.opaque),
        "flags": half.flag_names.split("|"),
        "in_slice": half.in_slice,
        "pending_ns": ages_ns.get(half.address),
    }


def _named(address: int | None, name: Name) -> str | None:
    """A callback's name; None where there is none, or it is not known."""
    return name(address) or None if address else None


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"


def _thread(look: Look, thread: Thread) -> Document:
    return {
        "tid": thread.tid,
        "name": inert(thread.name),
        "role": thread.role,
        "kernel": thread.kernel,
        "blocked_in": thread.blocked_in or None,
        "waits_outside": inert(thread.outside) or None,
        "asleep_ns": asleep_ns(look, thread) or None,
        "polls": [
            {"context": inert(look.context(p.ctx).label) if p.ctx else None, "frame": p.frame}
            for p in thread.polls
        ],
        "complete": thread.whole,
        "stack": [inert(frame) for frame in thread.frames],
    }


def print_look(
    console: Console, look: Look, name: Name, shown: Shown, ages_ns: dict[int, int]
) -> None:
    """All of a look.

    Args:
        name, ages_ns: as those of ``look_json``.
        shown: a frame as people are shown it, with its likely name.
    """
    say(console, "contexts", style="bold")
    for context in look.contexts:
        _print_context(console, look, context, name, ages_ns)
    say(console, "threads", style="bold")
    for thread in look.threads:
        _print_thread(console, look, thread, shown)
    if look.jobs:
        say(console, "jobs", style="bold")
    elif look.jobs is None:
        say(console, "jobs: ? (they cannot be read)", style=NOTE)
    for job in look.jobs or ():
        facts = " ".join(part for part in (job.kind, job.status) if part)
        say(console, f"  {job.id}: {facts}, {_coroutine(job.co)}{_awake(look, job)}")
        for frame in look.coroutine_frames.get(job.co or 0, ()):
            say(console, f"      {shown(frame)}")
    say(console, big_lock(look))
    if look.ending:
        say(console, _ended(look.ending))
    if look.stopped:
        say(console, f"the process is {look.held}: that nothing moves shows nothing", style=NOTE)
    for what in look.torn:
        say(console, f"not shown, it changes too fast or is not there: {what}", style=NOTE)
    if look.missing:
        facts = ", ".join(look.missing)
        say(console, f"not found in this binary's code: {facts}", style=NOTE)
    if look.differing:
        facts = ", ".join(look.differing)
        say(console, f"debug info, not the code, is believed on: {facts}", style=NOTE)


def print_answer(console: Console, answer: Answer) -> None:
    """The sentences; what one look alone cannot prove says so, and so does what is not known."""
    for number in answer.told_apart:
        finding = answer.findings[number]
        tell(console, finding.kind, FINDING if finding.proof else NOTE, finding.sentence)
        proof = finding.proof or "one look cannot show whether it stays so"
        say(console, f"  {proof}")
        below = answer.below.get(number)
        if below is not None:
            say(console, f"  it waits for {below.what}:")
            for line in below.lines:
                say(console, f"    {line}")
    if answer.reasons:
        what = "anything else" if answer.findings else "anything"
        tell(console, "inconclusive", NOTE, f"it cannot be told whether {what} is stuck")
        for reason in answer.reasons:
            say(console, f"  {reason}")
    elif not answer.findings:
        say(console, f"clear: {clear_words(answer)}", style="green")
    for remark in answer.remarks:
        say(console, f"  {remark}")


def clear_words(answer: Answer) -> str:
    """What it speaks of: nothing was seen of what could not be read."""
    look = answer.requests.blocks if answer.requests else None
    if look is None:
        return "no event loop is stuck; block requests were not looked at"
    if look.nodes is None or look.coroutines is None:
        return "no event loop is stuck; of block requests nothing can be told"
    some = ", of those that could be read" if look.torn else ""
    if answer.slow:
        return f"no event loop is stuck; {slow_words(answer.slow)}{some}"
    return f"no event loop is stuck, and no block request{some}"


def tell(console: Console, kind: str, style: str, sentence: str) -> None:
    text = Text(folded(console, f"{kind}: {sentence}"))
    text.stylize(style, 0, len(kind) + 1)
    console.print(text)


def say(console: Console, line: str, style: str = "") -> None:
    """A line; names from the target are untrusted."""
    console.print(Text(folded(console, line), style=style))


def folded(console: Console, line: str) -> str:
    """A line for a terminal: what does not fit goes on below, further in."""
    line = inert(line)
    if console.soft_wrap or len(line) <= console.width:
        return line
    margin = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line, console.width, subsequent_indent=margin + "    ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def summary(look: Look, verdicts: Sequence[str]) -> str:
    """One line: how much is pending where, what the main thread does, what is found."""
    counts = ", ".join(f"{c.label} {_count(look, c)}" for c in look.contexts)
    main = next((t for t in look.threads if t.role == "main"), None)
    does = doing(main) if main else "no main thread"
    line = f"pending: {counts or '?'}; main thread {does}"
    return inert("; ".join([line, *verdicts]))


def _count(look: Look, context: Context) -> str:
    if context.address in look.unread:
        return "?"
    return str(sum(half.ctx == context.address for half in look.bottom_halves))


def _print_context(
    console: Console, look: Look, context: Context, name: Name, ages_ns: dict[int, int]
) -> None:
    runner = look.thread(context.tid)
    handlers = [h for h in look.handlers if h.ctx == context.address and not h.deleted]
    whose = f", run by {runner.label}" if runner else ""
    unread = context.address in look.unread_handlers
    count = "? (not readable)" if unread else str(len(handlers))
    fds = f"{count} fd handler{'' if len(handlers) == 1 and not unread else 's'}"
    text = f"  {context.label} {context.address:#x}{whose}, {fds}"
    say(console, text)
    if context.address in look.unread:
        say(console, "      ? (its bottom halves cannot be read)", style=NOTE)
    if context.address in look.unread_coroutines:
        say(console, "      ? (coroutines that were scheduled there cannot be read)", style=NOTE)
    for half in look.bottom_halves:
        if half.ctx == context.address:
            age = ages_ns.get(half.address)
            since = f", pending for {age / 1e9:.3f} s" if age is not None else ""
            callback = name(half.cb) if half.cb else "?"
            called = "" if callback == half.name else f" calls {callback}"
            line = f"      {half.name or '?'}{called} {half.flag_names}{since}"
            say(console, line, style=NOTE)
    for co in look.scheduled:
        if co.ctx == context.address:
            say(console, f"      coroutine {co.address:#x} of {name(co.entry)}")
    for handler in handlers:
        callbacks = (handler.io_read, handler.io_write)
        called = ", ".join(name(cb) if cb else "?" for cb in callbacks if cb != 0)
        say(console, f"      fd {handler.fd}: {called}")


def _print_thread(console: Console, look: Look, thread: Thread, shown: Shown) -> None:
    polled = [look.context(poll.ctx).label if poll.ctx else "?" for poll in thread.polls]
    nested = f", polls {' inside '.join(f'`{label}`' for label in polled)}" if polled else ""
    name = f" {thread.name}" if thread.name else ""
    line = f"  {thread.tid}{name} ({thread.role}): {doing(thread)}{nested}"
    say(console, line, style="bold" if nested and thread.role != "iothread" else "")
    for frame in thread.frames:
        say(console, f"      {shown(frame)}")
    if thread.frames and not thread.whole:
        say(console, "      ? (the chain breaks off here)")


def _coroutine(address: int | None) -> str:
    if address is None:
        return "coroutine ?"
    return f"coroutine {address:#x}" if address else "no coroutine"


def doing(thread: Thread) -> str:
    """``ppoll in main_loop_wait``."""
    if thread.kernel:
        return "the kernel's own"
    if not thread.blocked_in:
        return "runs" if not thread.frames else f"in {(named_frames(thread) or ['?'])[0]}"
    frames = named_frames(thread)
    return f"{thread.blocked_in} in {frames[0]}" if frames else thread.blocked_in


def _awake(look: Look, job: Job) -> str:
    """Where a job's coroutine is when it does not sleep."""
    if job.co not in look.awake:
        return ""
    thread = look.thread(look.awake[job.co])
    if thread is None:
        return ", which is awake: its stack is its thread's"
    does = "has entered another" if look.coroutine_frames.get(job.co) else "runs now"
    return f", which {does} in thread {thread.label}"


def big_lock(look: Look) -> str:
    """Who holds the BQL."""
    if look.bql == 0:
        return "BQL: this program has none"
    if look.bql_holder is None:
        return "BQL: its holder does not show"
    holder = look.thread(look.bql_holder)
    if not look.bql_holder:
        return "BQL: free"
    return f"BQL: held by {holder.label if holder else look.bql_holder}"


def _ended(ending: Ending) -> str:
    """How the process of a core ended."""
    if ending.sender:
        return f"ended by {ending.signal}, which process {ending.sender} sent"
    return f"ended by {ending.signal} in {ending.tid}"


def verdict(findings: Sequence[Finding | RequestFinding], reasons: Sequence[str]) -> str:
    """The worst finding's kind; without a finding ``inconclusive`` or ``clear``."""
    kinds = sorted((finding.kind for finding in findings), key=SEVERITY.index)
    return kinds[0] if kinds else "inconclusive" if reasons else "clear"
