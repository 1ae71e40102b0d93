"""``aio coroutine`` and ``aio why``: what something waits for."""

from __future__ import annotations

from collections.abc import Iterable

import gdb

from qtrace.gdbscripts.command import AioCommand
from qtrace.gdbscripts.gdb_look import Qemu
from qtrace.gdbscripts.gdb_stacks import Stack, code_name
from qtrace.gdbscripts.gdb_target import is_core, setting
from qtrace.gdbscripts.list_commands import pending_names, where_awake
from qtrace.gdbscripts.tables import say, tell
from qtrace.gdbscripts.target_files import NAMELESS
from qtrace.qemu.aio.consistent_lists import Torn
from qtrace.qemu.aio.findings import confirm, explain
from qtrace.qemu.aio.inconclusive import unclear, unclear_in_core
from qtrace.qemu.aio.model import Look


class Coroutine(AioCommand):
    """Show the stack of a coroutine that sleeps.

    aio coroutine ADDRESS

    ADDRESS is that of the Coroutine, as aio jobs shows it, or an expression. The coroutine of a
    thread that is just in it has no other stack than that thread's: see thread apply all bt.
    """

    name = "coroutine"
    arguments = "ADDRESS"

    def __init__(self) -> None:
        # Completion of expressions is gdb's own.
        gdb.Command.__init__(self, "aio coroutine", gdb.COMMAND_DATA, gdb.COMPLETE_EXPRESSION)

    complete = None  # type: ignore[assignment]

    def run(self, arguments: list[str]) -> None:
        if not arguments:
            raise self.usage()
        with setting("may-call-functions", "off"):
            address = int(gdb.parse_and_eval(" ".join(arguments))) & (1 << 64) - 1
        qemu = Qemu()
        try:
            coroutine = qemu.reader.coroutine(address)
            stack, tid = qemu.stack_of(address)
        except Torn:
            raise gdb.GdbError(f"there is no memory at {address:#x}") from None
        if tid and stack is None:
            raise gdb.GdbError(f"coroutine {address:#x} is awake: thread {tid} is in it")
        if stack is None or "qemu_coroutine_switch" not in stack.names[0]:
            raise gdb.GdbError(
                f"{address:#x} is no coroutine that sleeps; aio jobs shows those of jobs"
            )
        named = {context.address: context.label for context in qemu.contexts}
        ctx = coroutine.ctx or 0
        line = f"coroutine {address:#x}, entry {code_name(coroutine.entry)}"
        line += f", runs in {named.get(ctx, hex(ctx))}" if ctx else ""
        say(line + (f", {where_awake(stack, tid)}" if tid else ""))
        _print(stack)


class Why(AioCommand):
    """Say who is in the way of the pending bottom halves, one sentence each.

    aio why [NAME]

    With NAME only of bottom halves of that name. What a stopped process shows may be over in a
    moment: let it continue for a while and ask again. In a hung one it stays.
    """

    name = "why"
    arguments = "[NAME]"

    def candidates(self, words: list[str]) -> Iterable[str]:
        return () if words else pending_names()

    def run(self, arguments: list[str]) -> None:
        name = self.at_most_one(arguments)
        look = Qemu().look()
        before = _looks.add(look)
        lasting = confirm(before, look, name) if before else []
        known = {(finding.kind, finding.thread.tid) for finding in lasting}
        findings = lasting + [
            finding
            for finding in explain(look, name)
            if (finding.kind, finding.thread.tid) not in known
        ]
        for finding in findings:
            moment = "" if finding.proof or is_core() else "At this moment "
            tell(moment + finding.sentence)
            if finding.proof:
                say(f"  {finding.proof}")
        reasons = (unclear_in_core if is_core() else unclear)(look, name)
        if reasons:
            what = "anything else" if findings else "anything"
            of = f" of {name}" if name else ""
            say(f"it cannot be told whether {what} is in the way{of}:")
        for reason in reasons:
            tell(f"  {reason}")
        if not findings and not reasons:
            say(nothing_in_the_way(look, name))
        elif not is_core() and not all(finding.proof for finding in findings):
            say("continue for a while and ask again: then it shows whether it stays so")


class _Looks:
    """The look that was taken before the target last ran, to compare the next one with."""

    def __init__(self) -> None:
        self._pid = 0
        self._before: Look | None = None
        self._latest: Look | None = None
        gdb.events.cont.connect(self._ran)

    def add(self, look: Look) -> Look | None:
        """Keep a look; the one before the target last ran, None where there is none."""
        pid = gdb.selected_inferior().pid
        if pid != self._pid:
            self._before = None
        self._pid, self._latest = pid, look
        return self._before

    def _ran(self, event: gdb.ContinueEvent) -> None:
        self._before, self._latest = self._latest or self._before, None


_looks = _Looks()


def nothing_in_the_way(look: Look, name: str) -> str:
    pending = [half for half in look.bottom_halves if name in ("", half.name)]
    if not pending:
        return f"{name} is not pending" if name else "nothing is in the way: nothing is pending"
    where = sorted({f"`{look.context(half.ctx).label}`" for half in pending})
    what = name or ("1 bottom half" if len(pending) == 1 else f"{len(pending)} bottom halves")
    return f"nothing is in the way of {what} pending in {', '.join(where)}"


def _print(stack: Stack) -> None:
    for number, frame in enumerate(stack.frames):
        name = "??" if NAMELESS.match(frame.name) else frame.name
        source = f" at {frame.source}" if frame.source else ""
        say(f"#{number:<3}{frame.pc:#018x} in {name}{source}")
