"""One look at the block layer: nodes, requests, and what every coroutine sleeps in.

Whoever looks brings what differs: how memory is read, how stacks are unwound and named.
"""

from __future__ import annotations

import bisect
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from qtrace.machine.architecture import Architecture
from qtrace.machine.memory import Memory, Pages
from qtrace.qemu.aio.awake import Awake
from qtrace.qemu.aio.jump_buffer import saved_registers
from qtrace.qemu.aio.layout import Layout
from qtrace.qemu.aio.model import Look, Thread
from qtrace.qemu.block.block_layout import BlockLayout
from qtrace.qemu.block.block_model import (
    ASLEEP,
    ENTERED,
    RUNS,
    BlockLook,
    Coroutine,
    Node,
    Request,
    ThrottleMember,
)
from qtrace.qemu.block.coroutines import CoroutineStacks, Found
from qtrace.qemu.block.graph import GraphReader
from qtrace.qemu.block.holders import NEAR, Holders, waits_for_others

# So much of a coroutine's stack, from its stack pointer on, is searched for what it has in hand.
SEARCHED = 16 << 10
# The top of a sleeping worker's stack, where pointers to the request's coroutine lie.
WORKER_TOP = 1 << 10
TRIES = 3
# Where a worker waits for work (qemu_cond_timedwait() in util/thread-pool.c).
IDLE_WORKER = frozenset({"futex", "ppoll", "poll"})


class BlockSource(Protocol):
    """A QEMU whose coroutines are looked at: live, in a core, before gdb."""

    @property
    def architecture(self) -> Architecture: ...

    @property
    def memory(self) -> Memory: ...

    @property
    def layout(self) -> Layout:
        """Of AioContexts and coroutines."""

    def pointer_guard(self) -> int | None:
        """What the C library mangles saved pointers with."""

    def guarded(self) -> list[tuple[int, int]]:
        """As ``qtrace.process.look_source.Source.guarded``."""

    def awake(self) -> Awake:
        """Which coroutines the threads are in now."""

    def unwound(self, co: int, registers: dict[str, int], memory: Pages) -> Unwound:
        """The stack of a coroutine that left with these registers; ``memory`` to read it by."""

    def name(self, address: int) -> str:
        """The name of a function."""


@dataclass(frozen=True)
class Unwound:
    """A coroutine's frames, leaf first, without what lies beyond its trampoline; ``whole``: they
    reach it; ``free``: there are none but the trampoline's own."""

    frames: tuple[str, ...]
    whole: bool
    free: bool


class BlockReader:
    """Takes looks at the block layer; what it learns of stacks is kept between them."""

    def __init__(self, source: BlockSource, layout: BlockLayout) -> None:
        self._source = source
        self._memory = source.memory
        self.layout = layout
        self._reader = GraphReader(self._memory, layout)
        self._stacks = CoroutineStacks(self._memory, source.layout)
        self._stack = Pages(self._memory)
        self._guard = source.pointer_guard()
        self._stack_pointer = source.architecture.stack_pointer_name
        self._pc = source.architecture.pc_name
        # How deep a free coroutine's stack pointer lies, and where it left by.
        self._free: set[tuple[int, int]] = set()

    def look(self, look: Look) -> BlockLook:
        """What is there now.

        Args:
            look: one that has just been taken, with details.
        """
        began = time.monotonic_ns()
        torn: list[str] = []
        missing = _expected(look, self.layout)
        reader, one = self._reader, partial(self._reader.one, torn=torn, missing=missing)
        nodes = one(reader.nodes)
        requests, passing = self._requests(nodes or (), torn, missing)
        backends = one(reader.backends)
        members = one(partial(reader.members, backends or (), nodes or ())) or ()
        coroutines, free = self._coroutines(look, nodes or (), members, torn)
        facts = {job.address: one(partial(reader.job, job)) for job in look.jobs or ()}
        contexts = [context.address for context in look.contexts if context.address]
        workers = self._workers(look.threads, coroutines or ())
        return BlockLook(
            time_ns=began,
            nodes=None if nodes is None else tuple(nodes),
            backends=None if backends is None else tuple(backends),
            exports=tuple(one(reader.exports) or ()) if self.layout.exports else (),
            members=tuple(members),
            requests=tuple(requests),
            passing=tuple(passing),
            coroutines=coroutines,
            free=free,
            workers=workers,
            other_work=_other_work(look.threads, coroutines, workers),
            busy_pool=_busy_pool(look.threads),
            run_state=one(reader.run_state) or "",
            migration=one(reader.migration) or "",
            jobs={job: fact for job, fact in facts.items() if fact is not None},
            graph=one(partial(reader.graph_lock, contexts)),
            torn=tuple(torn),
            missing=tuple(sorted(missing)),
        )

    def _requests(
        self, nodes: Iterable[Node], torn: list[str], missing: set[str]
    ) -> tuple[list[Request], list[int]]:
        found: list[Request] = []
        passing = []
        for node in nodes:
            read = partial(self._reader.requests, node.address)
            result = self._reader.one(read, torn, missing)
            if result is None:
                continue
            found += result[0]
            if result[1]:
                passing.append(node.address)
        return found, passing

    # Coroutines

    def _coroutines(
        self,
        look: Look,
        nodes: Iterable[Node],
        members: Iterable[ThrottleMember],
        torn: list[str],
    ) -> tuple[tuple[Coroutine, ...] | None, int]:
        """Those that are not free, and how many are. None where they cannot be found."""
        if None in (self._source.layout.co_env, self._guard):
            return None, 0
        found = self._stacks.find(self._source.guarded())
        if unread := self._stacks.unread:
            torn.append(f"{unread} stacks, perhaps of coroutines, whose memory is not there")
            if not found:
                return None, 0
        wanted = _Wanted(look, nodes, members)
        awake = self._source.awake()
        coroutines: dict[int, Coroutine] = {}
        free, todo = 0, found
        for _ in range(TRIES):
            if not todo:
                break
            self._stack.forget()
            registers = {one.address: self._saved(one.address) for one in todo}
            read = {
                one: self._coroutine(one, awake, wanted, registers[one.address]) for one in todo
            }
            # One that has gone on meanwhile has another stack by now.
            self._stack.forget()
            moved = [one for one in todo if self._saved(one.address) != registers[one.address]]
            for one in moved:
                del read[one]
            free += sum(co is None for co in read.values())
            coroutines |= {co.address: co for co in read.values() if co is not None}
            todo = moved
            awake = self._source.awake() if moved else awake
        if todo:
            torn.append(
                f"{len(todo)} coroutine{'' if len(todo) == 1 else 's'} that went on meanwhile"
            )
        near = {co.address: self._near(co) for co in coroutines.values() if waits_for_others(co)}
        if near:
            own = (node.address for node in nodes)
            holders = Holders(self._memory, coroutines, self.layout.mutex_holder, own)
            return tuple(holders.added(near)), free
        return tuple(coroutines.values()), free

    def _near(self, co: Coroutine) -> Sequence[int]:
        """What a coroutine's registers hold, and its stack near the leaf."""
        saved = self._saved(co.address) or {}
        return (*saved.values(), *self._words(co.sleeps_at[0], NEAR))

    def _coroutine(
        self, found: Found, awake: Awake, wanted: _Wanted, registers: dict[str, int] | None
    ) -> Coroutine | None:
        """None of one that is free."""
        stack = (found.low, found.high)
        tid = awake.threads.get(found.address)
        name = self._source.name(found.entry)
        if found.address in awake.running or (found.caller and tid is None):
            return Coroutine(found.address, name, RUNS, tid or 0, stack=stack)
        stack_pointer, pc = self._stack_pointer, self._pc
        if registers is None or not found.low <= registers[stack_pointer] < found.high:
            return Coroutine(found.address, name, ASLEEP, stack=stack)
        left_by = (found.high - registers[stack_pointer], registers[pc])
        if left_by in self._free and tid is None:
            return None
        unwound = self._source.unwound(found.address, registers, self._stack)
        if unwound.free and tid is None:
            self._free.add(left_by)
            return None
        base = registers[stack_pointer]
        words = [*registers.values(), *self._words(base, min(found.high - base, SEARCHED))]
        return Coroutine(
            found.address,
            name,
            ASLEEP if tid is None else ENTERED,
            tid or 0,
            frames=unwound.frames,
            whole=unwound.whole,
            sleeps_at=(base, registers[pc]),
            stack=stack,
            fds=wanted.fds(words),
            group=wanted.group(words),
            nodes=wanted.nodes(words),
            jobs=wanted.jobs(words),
            argument=found.argument,
        )

    def _saved(self, co: int) -> dict[str, int] | None:
        env, guard = self._source.layout.co_env, self._guard
        assert env is not None
        assert guard is not None
        return saved_registers(self._stack, co, env, guard, self._source.architecture)

    def _words(self, address: int, size: int) -> tuple[int, ...]:
        raw = self._memory.read(address, size)
        return struct.unpack(f"<{len(raw) // 8}Q", raw[: len(raw) // 8 * 8])

    def _workers(
        self, threads: Iterable[Thread], coroutines: Iterable[Coroutine]
    ) -> dict[int, int]:
        """By coroutine, the sleeping thread whose stack points into that of the coroutine: it has
        its work in hand (util/thread-pool.c)."""
        # (9pfs has its own run by the worker.)
        asleep = sorted((*co.stack, co.address) for co in coroutines if co.state == ASLEEP)
        lows = [low for low, _high, _co in asleep]
        found: dict[int, int] = {}
        for thread in threads if asleep else ():
            if thread.role not in ("worker", "other") or not _has_work(thread):
                continue
            for word in self._words(thread.waits_at[0], WORKER_TOP):
                index = bisect.bisect_right(lows, word) - 1
                if index >= 0 and word < asleep[index][1]:
                    found.setdefault(asleep[index][2], thread.tid)
                    break
        return found


def _has_work(thread: Thread) -> bool:
    """Whether a thread of the pool sleeps elsewhere than where it waits for work."""
    return bool(thread.blocked_in) and thread.blocked_in not in IDLE_WORKER


def _other_work(
    threads: Iterable[Thread],
    coroutines: Iterable[Coroutine] | None,
    workers: Mapping[int, int],
) -> tuple[Thread, ...]:
    """The pool's threads that sleep with work in hand for others than the block layer: 9pfs
    (hw/9pfs/coth.h), a TPM, a virtio-pmem."""
    if coroutines is None:
        return ()
    known = set(workers.values())
    return tuple(
        thread for thread in threads
        if thread.role == "worker" and _has_work(thread) and thread.tid not in known
    )  # fmt: skip


def _busy_pool(threads: Iterable[Thread]) -> frozenset[int]:
    pool = [thread for thread in threads if thread.role == "worker"]
    return frozenset(thread.tid for thread in pool if all(map(_has_work, pool)))


class _Wanted:
    """What is looked for on the stacks of coroutines, by the words that stand for it."""

    def __init__(
        self, look: Look, nodes: Iterable[Node], members: Iterable[ThrottleMember]
    ) -> None:
        self._fds: dict[int, list[int]] = {}
        for handler in look.handlers:
            if handler.opaque and not handler.deleted and handler.fd >= 0:
                self._fds.setdefault(handler.opaque, []).append(handler.fd)
        self._nodes = {node.address for node in nodes}
        self._groups = {member.address: member.group for member in members}
        self._jobs = {job.address for job in look.jobs or ()}

    def fds(self, words: Iterable[int]) -> tuple[int, ...]:
        found = [fd for word in words if word in self._fds for fd in self._fds[word]]
        return tuple(dict.fromkeys(found))

    def nodes(self, words: Iterable[int]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(word for word in words if word in self._nodes))

    def jobs(self, words: Iterable[int]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(word for word in words if word in self._jobs))

    def group(self, words: Iterable[int]) -> str:
        return next((self._groups[word] for word in words if word in self._groups), "")


def _expected(look: Look, layout: BlockLayout) -> set[str]:
    """The facts that every such program has: without a BQL there is no guest, and without a main
    loop there are no exports."""
    absent: tuple[str, ...] = () if look.main_loop else ("export",)
    absent += ("run_state", "migration") if look.bql == 0 or not look.main_loop else ()
    return {fact for fact in layout.missing() if not fact.startswith(absent)}
