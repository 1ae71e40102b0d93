"""One look at a QEMU: its contexts, what is pending in them, and what every thread does."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

from qtrace.errors import NotQemu, QtraceError, ScanFailed
from qtrace.host.freezer import TRAPS
from qtrace.host.held_threads import may_be_held
from qtrace.inspection.qemu import Qemu
from qtrace.machine.memory import Pages
from qtrace.machine.syscalls import RUNNING_GUEST, restarted
from qtrace.process.live_source import LiveSource
from qtrace.process.look_source import LookSource, State
from qtrace.process.process import read_version
from qtrace.process.running_stacks import Sample
from qtrace.process.stack import (
    COMPLETE,
    COROUTINE,
    LARGEST_FRAME,
    UNREADABLE,
    Chain,
    Frame,
    ReadWord,
)
from qtrace.qemu.aio.awake import MAX_NESTED, Awake, awake
from qtrace.qemu.aio.consistent_lists import Torn
from qtrace.qemu.aio.futex import read_futex
from qtrace.qemu.aio.gather import take_look
from qtrace.qemu.aio.jump_buffer import saved_registers
from qtrace.qemu.aio.model import PAGE_FAULT, USERFAULT, Context, Ending, Look, Poll, Thread
from qtrace.qemu.aio.polled_context import polled_by_fds
from qtrace.qemu.aio.walk import AioReader, Missing
from qtrace.roles import Role, role_of_name

POLL = "aio_poll"
WORD = 8
TRIES = 3
# Locals of a function without unwind rules, in bytes, that are searched for its return address.
LARGEST_LEAF = 1 << 10
# A thread that sleeps for 100 us again and again is seen asleep before long; on a host whose
# processors are scarce it waits for one most of the time.
SIGHTED_WITHIN_S, SIGHTING_S = 1.0, 0.001


class Looker:
    """Takes looks at one QEMU; what it learns of code and threads is kept between them.

    Raises:
        NotQemu: the program has no AioContext code.
        ScanFailed: it is a QEMU, but has no symbol that leads to that code.
    """

    def __init__(self, qemu: Qemu) -> None:
        self.qemu = qemu
        self.source = source = qemu.source
        self.layout = qemu.layout
        self.architecture = qemu.architecture
        if self.layout.main_variable is None and self.layout.ctx_bh_list is None:
            raise _no_code(source)
        self.reader = AioReader(source.memory, self.layout)
        self._stack = Pages(source.memory)
        self.unwinder = qemu.look_unwinder
        self._unmapped: set[int] = set()
        self._guard: int | None = None
        self._pointers: dict[int, int] = {}
        self._contexts: set[int] = set()
        # Of IOThreads, by thread.
        self._own: dict[int, int] = {}
        self._seen: dict[int, tuple[State, Thread]] = {}
        self._names: dict[int, str] = {}
        # Of stacks that were unwound: where each return address lies.
        self._returns: dict[int, tuple[tuple[int, int], ...]] = {}
        self._awake: Awake | None = None

    def look(self, *, details: bool = True) -> Look:
        """As ``take_look``. Raises NoSuchProcess: the process is gone."""
        return take_look(self, details=details)

    @property
    def pid(self) -> int:
        return self.source.pid

    @property
    def program(self) -> str:
        return self.source.program

    def present(self) -> dict[int, str]:
        """As ``Shown.present``; a look begins with it."""
        self._names = names = self.source.threads()
        self.qemu.roles.present(names)
        self._seen = {tid: seen for tid, seen in self._seen.items() if tid in names}
        self._returns = {tid: places for tid, places in self._returns.items() if tid in names}
        return names

    def pointers(self) -> dict[int, int]:
        self._pointers = self.source.thread_pointers()
        return self._pointers

    def threads(self, contexts: Sequence[Context]) -> list[Thread]:
        self._contexts = {context.address for context in contexts}
        self._own = {c.tid: c.address for c in contexts if c.name.startswith("iothread:")}
        self._awake = None
        return [self.thread(tid, name, tid in self._own) for tid, name in self._names.items()]

    def big_lock_holder(self) -> int | None:
        """The thread that holds the BQL now, 0 for none; None where that cannot be read."""
        try:
            holder = self.reader.bql_holder()
        except (Missing, Torn):
            return None
        return self.outer_tid(holder) if holder else holder

    def outer_tid(self, tid: int) -> int:
        return self.source.outer_tid(tid)

    def ending(self) -> Ending | None:
        return self.source.ending()

    def differing(self) -> list[str]:
        return self.qemu.differing

    def absent(self) -> list[str]:
        return sorted(self.source.space.absent)

    def held(self, threads: Sequence[Thread]) -> str:
        """Why the main thread, or else a few of those that matter to it, cannot move."""
        why = self.source.held(self.source.pid)
        if why:
            return why
        by_reason: dict[str, list[int]] = {}
        for thread in threads:
            if thread.role in ("iothread", "vcpu") and may_be_held(thread.state, thread.wchan):
                by_reason.setdefault(self.source.held(thread.tid), []).append(thread.tid)
        by_reason.pop("", None)
        parts = [
            f"thread{'s' if len(tids) > 1 else ''} {', '.join(map(str, tids))} {reason}"
            for reason, tids in by_reason.items()
        ]
        return f"held in part: {'; '.join(parts)}" if parts else ""

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
                # It has not run since the last look; what it sleeps on may be another's.
                return self._with_futex(seen[1])
            self._stack.forget()
            chain = self._chain(tid, state.registers)
            if self.source.state(tid) == state:
                if self._is_in_new_code(chain):
                    continue
                thread = self._blocked(tid, name, owns_context, state, chain)
                self._seen[tid] = (state, thread)
                return thread
        return Thread(tid, name, self._role(tid, name, owns_context, []), "")

    def reads(self, tid: int) -> int | None:
        """How often a thread of a live QEMU has called read(2), or one like it, so far; None where
        that is not known."""
        return self.source.reads(tid) if isinstance(self.source, LiveSource) else None

    def has_run(self, thread: Thread) -> bool:
        """Whether a thread has run since a look took it; True also where that cannot be told."""
        state = self.source.state(thread.tid)
        return not thread.cpu_ns or (state.cpu_ns, state.turns) != (thread.cpu_ns, thread.turns)

    def frames_of(self, tid: int, within: str = "") -> tuple[list[str], list[Frame]]:
        """The functions of a thread that sleeps, leaf first, and their frames; empty when it was
        not seen to sleep (in the function ``within``).

        It may have run on meanwhile: what its registers hold has to prove itself.
        """
        until = time.monotonic() + (SIGHTED_WITHIN_S if within else 0.0)
        while True:
            state = self.source.state(tid)
            if state.registers is not None:
                self._stack.forget()
                chain = self._chain(tid, state.registers)
                names = [name.split("+0x")[0] for name in self.unwinder.names(chain)]
                if not within or within in names:
                    return names, chain.frames
            if time.monotonic() >= until:
                return [], []
            time.sleep(SIGHTING_S)

    def returns(self, tid: int) -> tuple[tuple[int, int], ...]:
        """Where the return addresses of a thread lay that was last seen asleep, and they; empty
        where they lie elsewhere than on the stack."""
        return self._returns.get(tid, ())

    def has_words(self, words: Sequence[tuple[int, int]]) -> bool:
        """Whether each of these places of memory has its word now."""
        self._stack.forget()
        return all(self._word(address) == word for address, word in words)

    def words_in(self, frames: Sequence[Frame]) -> list[int]:
        """What registers and stack hold in frames that follow each other, from the leaf on: each
        word once."""
        words: list[int | None] = []
        pointer = self.architecture.stack_pointer
        for frame, outer in itertools.pairwise(frames):
            words += frame.registers.values()
            size = min(outer.registers[pointer] - frame.registers[pointer], LARGEST_FRAME)
            words += [self._word(frame.registers[pointer] + at) for at in range(0, size, 8)]
        return [word for word in dict.fromkeys(words) if word]

    def sampled(self, thread: Thread, sample: Sample) -> Thread:
        """A thread that runs, with the stack that it had when the sample was taken."""

        def word(address: int) -> int | None:
            value = sample.stack.word(address)
            return self._word(address) if value is None else value

        self._stack.forget()
        chain = self._chain(thread.tid, sample.registers, word)
        if chain.end == UNREADABLE and len(chain.frames) == 1:
            chain = self._past_leaf(thread.tid, chain, word)
        frames = self.unwinder.names(chain)
        return replace(
            thread,
            frames=tuple(frames),
            whole=chain.end == COMPLETE,
            polls=self._polls(thread.tid, chain, frames),
            blocked_in="",
        )

    def _past_leaf(self, tid: int, leaf: Chain, word: ReadWord) -> Chain:
        """The chain above a leaf without unwind rules, as hand-written assembly has none (libraries
        of ciphers): from the first word that is a return address and from which all of the rest
        unwinds to the thread's start."""
        (frame,) = leaf.frames
        pc, stack_pointer = self.architecture.pc, self.architecture.stack_pointer
        base = frame.registers[stack_pointer]
        for place in range(base, base + LARGEST_LEAF, 8):
            back = word(place)
            if back is None:
                break
            if self.unwinder.return_name(back):
                chain = self._chain(tid, {stack_pointer: place + 8, pc: back}, word)
                if chain.end == COMPLETE:
                    return Chain([frame, *chain.frames], COMPLETE)
        return leaf

    def _chain(self, tid: int, registers: dict[int, int], word: ReadWord | None = None) -> Chain:
        """A thread's whole chain: below a coroutine's own stack lies that of who entered it."""
        chain = self.unwinder.unwind(registers, word or self._word)
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
        self._returns[tid] = self._return_addresses(chain)
        assert state.registers is not None
        pc, stack_pointer = chain.frames[0].pc, state.registers[self.architecture.stack_pointer]
        thread = Thread(
            tid=tid,
            name=name,
            role=self._role(tid, name, owns_context, frames, whole=chain.end == COMPLETE),
            blocked_in=_blocked_in(state, frames),
            frames=tuple(frames),
            whole=chain.end == COMPLETE,
            polls=self._polls(tid, chain, frames, state),
            waits_at=(stack_pointer, pc),
            cpu_ns=state.cpu_ns,
            turns=state.turns,
            state=state.letter,
            wchan=state.wchan,
            arguments=state.arguments,
        )
        return self._with_futex(thread)

    def _return_addresses(self, chain: Chain) -> tuple[tuple[int, int], ...]:
        if not self.architecture.pushes_return_address:
            return ()
        stack_pointer = self.architecture.stack_pointer
        return tuple(
            (frame.registers[stack_pointer] - WORD, frame.pc) for frame in chain.frames[1:]
        )

    def _with_futex(self, thread: Thread) -> Thread:
        """The same, with what it sleeps on as that is now."""
        futex = read_futex(self.source.memory, thread.blocked_in, thread.arguments)
        if futex is not None:
            outer = self.source.outer_tid
            word, owner = (outer(tid) if tid else tid for tid in (futex.word, futex.owner))
            futex = replace(futex, word=word, owner=owner)
        return thread if futex == thread.futex else replace(thread, futex=futex)

    def _polls(
        self, tid: int, chain: Chain, frames: list[str], state: State | None = None
    ) -> tuple[Poll, ...]:
        """The aio_poll() frames of a thread; ``state`` is that of one that sleeps."""
        register = self.architecture.numbers.get(self.layout.poll_register or "", -1)
        found: list[Poll] = []
        for number, frame in enumerate(frames):
            if frame.split("+0x")[0] == POLL:
                ctx = chain.frames[number].registers.get(register, 0)
                if not self._is_context(ctx):
                    # aio_poll() asserts in_aio_context_home_thread(): an IOThread polls its own.
                    ctx = self._own.get(tid, 0)
                if not (ctx or found or state is None) and _blocked_in(state, frames) == "ppoll":
                    ctx = polled_by_fds(
                        self.source.memory, self.reader, self._contexts, state.arguments
                    )
                found.append(Poll(ctx, number))
        return tuple(found)

    def _is_context(self, ctx: int) -> bool:
        return ctx in self._contexts or (bool(ctx) and self.reader.is_context(ctx))

    def _role(
        self, tid: int, name: str, owns_context: bool, frames: list[str], *, whole: bool = False
    ) -> Role:
        # Whose thread-local variables can be read owns a context that was found, or none.
        shown = tid in self._pointers and self.layout.context_tls is not None
        owns = owns_context or (False if shown else None)
        return self.qemu.roles.role(tid, name, frames, whole=whole, owns_context=owns)

    def coroutine(self, co: int) -> tuple[tuple[str, ...], int | None]:
        """As ``Shown.coroutine``."""
        if self._awake is None:
            # Once in a look, after the threads.
            self._awake = self.awake()
        stack = self._coroutine_stack(co, self._awake)
        entered = self._awake.threads
        return stack or (), entered.get(co, 0) if stack is None or co in entered else None

    def _coroutine_stack(self, co: int, entered: Awake) -> tuple[str, ...] | None:
        """The stack of a coroutine that sleeps, or has entered another, leaf first.

        Empty when it cannot be read, None when it runs: what it last left by is old then.
        """
        layout = self.layout
        if layout.co_caller is None or layout.co_env is None:
            return ()
        for _ in range(TRIES):
            self._stack.forget()
            caller, left_by = self._word(co + layout.co_caller), self._saved(co)
            if co in entered.running or (caller and co not in entered.threads):
                return None
            if left_by is None:
                return ()
            chain = self.unwinder.unwind(left_by, self._word)
            self._stack.forget()
            if (self._word(co + layout.co_caller), self._saved(co)) != (caller, left_by):
                continue
            if not self._is_in_new_code(chain):
                return tuple(self.unwinder.names(chain))
        return None

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
        machine = self.architecture
        registers = saved_registers(self._stack, co, self.layout.co_env, self._guard, machine)
        if registers is None:
            return None
        return {machine.numbers[name]: value for name, value in registers.items()}

    def awake(self) -> Awake:
        """Which coroutines the threads of the last look are in now."""
        return awake(self.source.memory, self.layout, self._pointers)

    def name(self, address: int) -> str:
        """The name of a function's address, empty for 0."""
        return self.unwinder.name(address, leaf=True) if address else ""

    def _word(self, address: int) -> int | None:
        return self._stack.word(address)


def _blocked_in(state: State, frames: list[str]) -> str:
    """As ``Thread.blocked_in``. The kernel says "in no call" of who sleeps in a page fault; one
    inside of KVM_RUN shows by where it sleeps."""
    asleep = state.letter in ("S", "D") and state.wchan not in TRAPS
    if state.blocked_in == RUNNING_GUEST:
        faulting = state.letter == "D" or state.wchan.startswith(USERFAULT)
        return PAGE_FAULT if asleep and faulting else ""
    if not state.blocked_in:
        return PAGE_FAULT if asleep else ""
    return restarted(state.blocked_in, frames)


def _no_code(source: LookSource) -> QtraceError:
    program = f"process {source.pid} ({source.program})"
    if not read_version(source.binary.elf):
        return NotQemu(program)
    return ScanFailed(
        f"{program} has no symbols that lead to its AioContexts",
        "install this QEMU's debug symbols (its -dbgsym or -debuginfo package)",
    )
