"""One look at a QEMU: its contexts, what is pending in them, and what every thread does."""

from __future__ import annotations

import time

from qtrace.errors import NotQemu, QtraceError, ScanFailed
from qtrace.roles import Role, role_of_name
from qtrace.target.aio.calibration import calibrate
from qtrace.target.aio.coroutine import saved_registers
from qtrace.target.aio.debug_facts import believed
from qtrace.target.aio.gather import Gathering
from qtrace.target.aio.model import Look, Poll, Thread, has_main_loop
from qtrace.target.aio.walk import AioReader
from qtrace.target.aio_code import ModuleProgram
from qtrace.target.arch_x86_64 import DWARF_NUMBERS
from qtrace.target.debug_layout import facts_of_debug_info
from qtrace.target.jit import read_jit_code
from qtrace.target.memory import Pages
from qtrace.target.process import read_version
from qtrace.target.source import Source, State
from qtrace.target.stack import COMPLETE, COROUTINE, UNREADABLE, Chain, Unwinder
from qtrace.target.syscalls import RUNNING_GUEST, restarted
from qtrace.target.threads import role_of_stack

POLL = "aio_poll"
TRIES = 3
# Coroutines that entered one another.
MAX_NESTED = 16


class Looker:
    """Takes looks at one QEMU; what it learns of code and threads is kept between them.

    Raises:
        NotQemu: the program has no AioContext code.
        ScanFailed: it is a QEMU, but has no symbol that leads to that code.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        shown = calibrate(ModuleProgram(source.binary))
        self.layout, self._differing = believed(shown, facts_of_debug_info(source.binary))
        if self.layout.main_variable is None and self.layout.ctx_bh_list is None:
            raise _no_code(source)
        self._missing = frozenset(self.layout.missing())
        self.reader = AioReader(source.memory, self.layout)
        self._stack = Pages(source.memory)
        # Mostly garbage leads nowhere: a thread that ran on while its stack was read.
        self.unwinder = Unwinder(source.space, refreshing=False)
        jit = read_jit_code(source.memory, source.binary)
        self.unwinder.learn_jit(lambda: jit)
        self._unmapped: set[int] = set()
        self._guard: int | None = None
        self._pointers: dict[int, int] = {}
        self._contexts: set[int] = set()
        self._seen: dict[int, tuple[State, Thread]] = {}
        self._roles: dict[int, Role] = {source.pid: "main"}

    def look(self, *, details: bool = True) -> Look:
        """Everything there is to see now.

        Args:
            details: fd handlers, scheduled coroutines and the stacks of jobs, too. No finding
                needs them.

        Raises:
            NoSuchProcess: the process is gone.
        """
        source, reader = self.source, self.reader
        lists = Gathering(reader, self._missing)
        began = time.monotonic_ns()
        names = source.threads()
        self._pointers = source.thread_pointers()
        contexts = lists.contexts(source.pid, self._pointers, names)
        self._contexts = {context.address for context in contexts}
        bottom_halves = lists.bottom_halves(contexts)
        owners = {c.tid for c in contexts if c.name.startswith("iothread:")}
        threads = tuple(self.thread(tid, name, tid in owners) for tid, name in names.items())
        jobs = tuple(lists.one(reader.jobs) or ())
        holder = lists.one(reader.bql_holder)
        detailed = contexts if details else ()
        coroutines = [job.co for job in jobs if job.co] if details else []
        # Last of all: a process that ends in mid-look has memory that reads as nothing.
        return Look(
            time_ns=began,
            contexts=contexts,
            bottom_halves=bottom_halves,
            handlers=lists.each(detailed, reader.handlers),
            scheduled=lists.each(detailed, reader.scheduled_coroutines),
            jobs=jobs,
            threads=threads,
            bql_holder=source.outer_tid(holder) if holder else holder,
            ending=source.ending(),
            main_loop=has_main_loop(source.program),
            differing=tuple(self._differing),
            torn=tuple(lists.torn),
            missing=tuple(sorted(lists.missing)),
            unread=tuple(lists.unread),
            dark=tuple(lists.dark),
            coroutine_frames={co: self.coroutine_stack(co) for co in coroutines},
            stopped=source.stopped(),
        )

    def thread(self, tid: int, name: str, owns_context: bool = False) -> Thread:
        """One thread, unwound when it does not run."""
        for _ in range(TRIES):
            state = self.source.state(tid)
            if state.kernel:
                return Thread(tid, name, role_of_name(name) or "other", "", kernel=True)
            if state.registers is None:
                break
            seen = self._seen.get(tid)
            if seen and seen[0] == state and state.cpu_ns and seen[1].name == name:
                # It has not run since the last look.
                return seen[1]
            self._stack.forget()
            chain = self._chain(tid, state.registers)
            if self.source.state(tid) == state:
                if self._is_in_new_code(chain):
                    continue
                thread = self._blocked(tid, name, owns_context, state, chain)
                self._seen[tid] = (state, thread)
                return thread
        return Thread(tid, name, self._role(tid, name, owns_context, []), "")

    def _chain(self, tid: int, registers: dict[int, int]) -> Chain:
        """A thread's whole chain: below a coroutine's own stack lies that of who entered it."""
        chain = self.unwinder.unwind(registers, self._word)
        tls, caller = self.layout.coroutine_tls, self.layout.co_caller
        pointer = self._pointers.get(tid)
        if chain.end != COROUTINE or None in (tls, caller, pointer):
            return chain
        assert tls is not None
        assert caller is not None
        assert pointer is not None
        co = self._word(pointer + tls)
        for _ in range(MAX_NESTED):
            co = self._word(co + caller) if co else None
            known = self._saved(co) if co else None
            if known is None:
                break
            below = self.unwinder.unwind(known, self._word)
            chain = Chain([*chain.frames, *below.frames], below.end)
            if below.end != COROUTINE:
                break
        return chain

    def _blocked(
        self, tid: int, name: str, owns_context: bool, state: State, chain: Chain
    ) -> Thread:
        frames = self.unwinder.names(chain)
        blocked_in = restarted(state.blocked_in, frames)
        assert state.registers is not None
        pc, stack_pointer = chain.frames[0].pc, state.registers[DWARF_NUMBERS["rsp"]]
        return Thread(
            tid=tid,
            name=name,
            role=self._role(tid, name, owns_context, frames),
            blocked_in="" if state.blocked_in == RUNNING_GUEST else blocked_in,
            frames=tuple(frames),
            whole=chain.end == COMPLETE,
            polls=self._polls(chain, frames),
            waits_at=(stack_pointer, pc),
            cpu_ns=state.cpu_ns,
        )

    def _polls(self, chain: Chain, frames: list[str]) -> tuple[Poll, ...]:
        register = DWARF_NUMBERS.get(self.layout.poll_register or "", -1)
        found = []
        for number, frame in enumerate(frames):
            if frame.split("+0x")[0] == POLL:
                ctx = chain.frames[number].registers.get(register, 0)
                found.append(Poll(ctx if self._is_context(ctx) else 0, number))
        return tuple(found)

    def _is_context(self, ctx: int) -> bool:
        return ctx in self._contexts or (bool(ctx) and self.reader.is_context(ctx))

    def _role(self, tid: int, name: str, owns_context: bool, frames: list[str]) -> Role:
        role = self._roles.get(tid) or role_of_name(name) or role_of_stack(frames)
        if role is None and owns_context:
            role = "iothread"
        if frames and role:
            self._roles[tid] = role
        return role or "other"

    def coroutine_stack(self, co: int) -> tuple[str, ...]:
        """A sleeping coroutine's own stack, leaf first; empty when it cannot be read."""
        self._stack.forget()
        known = self._saved(co)
        if known is None:
            return ()
        chain = self.unwinder.unwind(known, self._word)
        if self._is_in_new_code(chain):
            chain = self.unwinder.unwind(known, self._word)
        return tuple(self.unwinder.names(chain))

    def _is_in_new_code(self, chain: Chain) -> bool:
        """Whether a chain broke off in a library that was loaded meanwhile: it is known now."""
        space, pc = self.source.space, chain.pcs[-1]
        if chain.end != UNREADABLE or pc in self._unmapped or space.find(pc) is not None:
            return False
        space.refresh()
        if space.find(pc) is None:
            self._unmapped.add(pc)
            return False
        return True

    def _saved(self, co: int) -> dict[int, int] | None:
        """The registers with which a coroutine, or who entered one, went to sleep."""
        if self._guard is None:
            self._guard = self.source.pointer_guard()
        if self.layout.co_env is None or self._guard is None:
            return None
        registers = saved_registers(self._stack, co, self.layout.co_env, self._guard)
        if registers is None:
            return None
        return {DWARF_NUMBERS[name]: value for name, value in registers.items()}

    def name(self, address: int) -> str:
        """The name of a function's address, empty for 0."""
        return self.unwinder.name(address, leaf=True) if address else ""

    def _word(self, address: int) -> int | None:
        return self._stack.word(address)


def _no_code(source: Source) -> QtraceError:
    program = f"process {source.pid} ({source.program})"
    if not read_version(source.binary.elf):
        return NotQemu(program)
    return ScanFailed(
        f"{program} has no symbols that lead to its AioContexts",
        "install this QEMU's debug symbols (its -dbgsym or -debuginfo package)",
    )
