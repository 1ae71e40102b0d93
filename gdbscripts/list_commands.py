"""``aio contexts``, ``bh``, ``handlers``, ``threads`` and ``jobs``: what there is."""

from __future__ import annotations

from collections.abc import Iterable

import gdb

from qtrace.gdbscripts.command import AioCommand
from qtrace.gdbscripts.gdb_look import Qemu, disagreements
from qtrace.gdbscripts.gdb_stacks import Stack, code_name
from qtrace.gdbscripts.tables import say, table, tell
from qtrace.gdbscripts.target_files import NAMELESS
from qtrace.qemu.aio.consistent_lists import Torn
from qtrace.qemu.aio.mechanics import TOLD
from qtrace.qemu.aio.model import Context, Look, Thread
from qtrace.qemu.aio.waits import in_words, named_frames, polled_context
from qtrace.qemu.aio.walk import Missing

# poll(2); the rest of the mask is printed as a number.
EVENTS = ((1, "IN"), (2, "PRI"), (4, "OUT"), (8, "ERR"), (16, "HUP"))


class Contexts(AioCommand):
    """List the AioContexts: main, iohandler and one of each IOThread.

    aio contexts

    THREAD is the home thread, whose loop owns the context. Before it stand how many there are of
    bottom halves that are pending (BH), fd handlers (FD), and coroutines that were scheduled to go
    on there (CO).
    """

    name = "contexts"

    def run(self, arguments: list[str]) -> None:
        if arguments:
            raise self.usage()
        qemu = Qemu()
        names = {thread.ptid[1]: thread.name for thread in gdb.selected_inferior().threads()}
        reader = qemu.reader
        rows = []
        for context in qemu.contexts:
            name = names.get(context.tid)
            home = f"{context.tid} ({name})" if name else str(context.tid)
            counts = []
            for read in (reader.bottom_halves, reader.handlers, reader.scheduled_coroutines):
                try:
                    counts.append(str(len(read(context.address))))
                except (Missing, Torn):
                    counts.append("?")
            rows.append((context.label, f"{context.address:#x}", *counts, home))
        table(
            ("CONTEXT", "ADDRESS", "BH", "FD", "CO", "THREAD"), rows,
            "this QEMU has not made its AioContexts yet", qemu.dark(),
        )  # fmt: skip
        tell_missing(qemu)
        if disagreements():
            say(f"debug info, not the code, is believed on: {', '.join(disagreements())}")


class BottomHalves(AioCommand):
    """List the pending bottom halves of all AioContexts.

    aio bh [NAME]

    They stand in the order in which they will run. A flag SLICE marks those that a running
    aio_bh_poll() has already taken from the context's list.
    """

    name = "bh"
    arguments = "[NAME]"

    def candidates(self, words: list[str]) -> Iterable[str]:
        return () if words else pending_names()

    def run(self, arguments: list[str]) -> None:
        name = self.at_most_one(arguments)
        qemu = Qemu()
        found, unread = qemu.each(qemu.contexts, qemu.reader.bottom_halves)
        rows = [
            (
                half.name or "?", context.label, code_name(half.cb), _hex(half.opaque),
                half.flag_names + ("|SLICE" if half.in_slice else ""), f"{half.address:#x}",
            )
            for context, half in found
            if name in ("", half.name)
        ]  # fmt: skip
        table(
            ("BOTTOM HALF", "CONTEXT", "CALLBACK", "OPAQUE", "FLAGS", "ADDRESS"), rows,
            f"{name} is not pending" if name else "no bottom half is pending",
            unread + qemu.dark(),
        )  # fmt: skip
        tell_missing(qemu, "bh_", "ctx_bh_")


class Handlers(AioCommand):
    """List the fd handlers of all AioContexts, or of one.

    aio handlers [CONTEXT]

    CONTEXT is a name or an address as aio contexts shows it.
    """

    name = "handlers"
    arguments = "[CONTEXT]"

    def candidates(self, words: list[str]) -> Iterable[str]:
        return () if words else (context.label for context in Qemu().contexts)

    def run(self, arguments: list[str]) -> None:
        qemu = Qemu()
        name = self.at_most_one(arguments)
        found, unread = qemu.each(chosen(qemu.contexts, name), qemu.reader.handlers)
        rows = [
            (
                context.label, "-" if handler.fd < 0 else handler.fd, _events(handler.events),
                code_name(handler.io_read), code_name(handler.io_write),
                _hex(handler.opaque), {None: "?", True: "deleted"}.get(handler.deleted, ""),
            )
            for context, handler in found
        ]  # fmt: skip
        table(
            ("CONTEXT", "FD", "EVENTS", "READ", "WRITE", "OPAQUE", ""), rows, "no fd handlers",
            unread if name else unread + qemu.dark(),
        )  # fmt: skip
        tell_missing(qemu, "handler_")


class Threads(AioCommand):
    """List the threads: what each is for, what it waits in, which AioContext it polls.

    aio threads

    "polling" names the context of the innermost aio_poll() on a thread's stack. For whole stacks
    there is gdb's own: thread apply all bt.
    """

    name = "threads"

    def run(self, arguments: list[str]) -> None:
        if arguments:
            raise self.usage()
        look = Qemu().look()
        table(
            ("TID", "NAME", "ROLE", "BQL", "STATE"),
            [
                (
                    thread.tid, thread.name or "-", thread.role,
                    "holds" if look.bql_holder == thread.tid else "", state(look, thread),
                )
                for thread in look.threads
            ],
            "no threads",
        )  # fmt: skip


class Jobs(AioCommand):
    """List the jobs, each with the stack of its coroutine.

    aio jobs
    """

    name = "jobs"

    def run(self, arguments: list[str]) -> None:
        if arguments:
            raise self.usage()
        qemu = Qemu()
        jobs = qemu.reader.jobs()
        if not jobs:
            say("no jobs")
        for job in jobs:
            coroutine = f"coroutine {job.co:#x}" if job.co else "no coroutine"
            coroutine = "coroutine ?" if job.co is None else coroutine
            stack, tid = _coroutine(qemu, job.co) if job.co else (None, None)
            awake = "" if tid is None else f"  {where_awake(stack, tid)}"
            facts = f"{job.kind or '?'}  {job.status or '?'}"
            tell(f"{job.id or '(internal)'}  {facts}  {coroutine}{awake}")
            if stack is not None:
                functions = (name.partition("+")[0] for name in stack.names)
                tell("    " + " < ".join(NAMELESS.sub("0x", name) for name in functions))


def tell_missing(qemu: Qemu, *kinds: str) -> None:
    """Say which facts of the layout are not known: all, or those whose names begin so."""
    missing = [fact for fact in qemu.layout.missing() if fact.startswith(kinds or ("",))]
    if missing:
        tell(f"not shown by the code of this QEMU: {', '.join(missing)}")


def _coroutine(qemu: Qemu, co: int) -> tuple[Stack | None, int | None]:
    try:
        return qemu.stack_of(co)
    except Torn:
        return None, None


def where_awake(stack: Stack | None, tid: int) -> str:
    """Where a coroutine is that does not sleep."""
    if not tid:
        return "is awake: its stack is its thread's"
    return f"{'has entered another' if stack else 'runs now'} in thread {tid}"


def pending_names() -> Iterable[str]:
    """For the completion of a bottom half's name."""
    qemu = Qemu()
    found, _unread = qemu.each(qemu.contexts, qemu.reader.bottom_halves)
    return (half.name for _context, half in found)


def chosen(contexts: list[Context], wanted: str) -> list[Context]:
    """The context of that name or address; all of them without one.

    Raises gdb.GdbError when there is no such context.
    """
    if not wanted:
        return contexts
    found = [c for c in contexts if wanted in (c.name, f"{c.address:#x}")]
    if not found:
        raise gdb.GdbError(
            f"no AioContext is called {wanted}; there are "
            + ", ".join(context.label for context in contexts)
        )
    return found


def state(look: Look, thread: Thread) -> str:
    """What a thread does, in a few words."""
    if thread.kernel:
        return "the kernel's own"
    if thread.blocked_in:
        return in_words(look, thread)
    frames = named_frames(thread)[:TOLD]
    polls = polled_context(look, thread)
    return (f"runs in {' < '.join(frames)}" if frames else "runs") + (
        f", polling {polls.quoted}" if polls else ""
    )


def _hex(value: int | None) -> str:
    return "?" if value is None else f"{value:#x}"


def _events(mask: int) -> str:
    names = [name for bit, name in EVENTS if mask & bit]
    rest = mask & ~sum(bit for bit, _ in EVENTS)
    return "|".join([*names, f"{rest:#x}"] if rest else names) or "-"
