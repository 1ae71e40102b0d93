"""For which other coroutines those wait that sleep in a CoMutex or a CoQueue.

A CoMutex names its holder. A CoQueue has none: whoever waits there waits until somebody else is
done with what the queue is a part of (the slots of an NBD client, a request that it overlaps with,
a flush of the node). So it is said who else has just that in hand.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from qtrace.machine.memory import PAGE, Memory, Pages
from qtrace.qemu.block.block_model import ASLEEP, Coroutine
from qtrace.qemu.block.coroutine_waits import MUTEX, QUEUE, wait_of

# What is waited for has its address on the stack, or in a register, so near the leaf.
NEAR = 1 << 10
# CoQueue {QSIMPLEQ_HEAD entries: first, last} (include/qemu/coroutine.h).
QUEUE_HEAD = struct.Struct("<2Q")
# Where a Coroutine has co_queue_next: what `last` tells, beyond its first members.
EARLIEST, LATEST = 0x28, 0x68
# A structure with a CoQueue is not larger up to there; a BlockDriverState is.
IN_STRUCTURE, IN_NODE = 0x400, 0x4800
# So much of a stack is searched for what its coroutine has in hand, of so many coroutines.
SEARCHED, MOST_SEARCHED = 4 << 10, 256


class Holders:
    """Of the coroutines of one look.

    Args:
        mutex_holder: ``BlockLayout.mutex_holder``.
        nodes: addresses of block nodes.
    """

    def __init__(
        self,
        memory: Memory,
        coroutines: Mapping[int, Coroutine],
        mutex_holder: int | None,
        nodes: Iterable[int],
    ) -> None:
        self._memory = Pages(memory)
        self._all = coroutines
        self._mutex_holder = mutex_holder
        self._nodes = frozenset(nodes)
        self._next: int | None = None

    def added(self, words: Mapping[int, Sequence[int]]) -> list[Coroutine]:
        """All coroutines, those that wait for others with ``queue`` and ``holders``.

        Args:
            words: of each that waits in a CoMutex or CoQueue, what lies near its leaf.
        """
        waiting = {address for address in words if wait_of(self._all[address]).kind == QUEUE}
        queues: dict[int, int] = {}
        members: dict[int, list[int]] = {}
        for address in waiting:
            if address not in queues:
                queue, its = self._queue(words[address], address, waiting)
                queues |= dict.fromkeys(its, queue)
                members[queue] = its
        have = {queue: self._have(queue, its) for queue, its in members.items()}
        found = []
        for address, co in self._all.items():
            if address in queues:
                queue = queues[address]
                co = replace(co, queue=queue, holders=have[queue])
            elif address in words and address not in waiting:
                co = replace(co, holders=self._holder(words[address], address))
            found.append(co)
        return found

    def _holder(self, words: Iterable[int], waiter: int) -> tuple[int, ...]:
        """Of the CoMutex whose address is among the words."""
        if self._mutex_holder is None:
            return ()
        for word in filter(_is_place, words):
            holder = self._memory.word(word + self._mutex_holder)
            if holder is not None and holder in self._all and holder != waiter:
                return (holder,)
        return ()

    # CoQueues

    def _queue(self, words: Iterable[int], waiter: int, waiting: set[int]) -> tuple[int, list[int]]:
        """The CoQueue in which a coroutine is, and who else, in their order; 0 for none."""
        for word in filter(_is_place, dict.fromkeys(words)):
            size = IN_NODE if word in self._nodes else IN_STRUCTURE
            raw = self._memory.read(word, size)
            for at in range(0, len(raw) - QUEUE_HEAD.size + 1, 8):
                first, last = QUEUE_HEAD.unpack_from(raw, at)
                if first in waiting:
                    members = self._members(first, last, len(waiting))
                    if waiter in members and waiting.issuperset(members):
                        return word + at, members
        return 0, [waiter]

    def _members(self, first: int, last: int, most: int) -> list[int]:
        """The list from its head on; empty where these words are no head of one."""
        offsets = range(EARLIEST, LATEST, 8) if self._next is None else (self._next,)
        for offset in offsets:
            members = [first]
            while len(members) <= most and (following := self._memory.word(members[-1] + offset)):
                members.append(following)
            if members[-1] + offset == last and len(members) <= most:
                self._next = offset
                return members
        return []

    def _have(self, queue: int, members: Sequence[int]) -> tuple[int, ...]:
        """Who else has in hand what a queue is a part of."""
        if not queue:
            return ()
        others = [co for co in self._all.values() if co.address not in members]
        for co in others:
            low, high = co.stack
            if low <= queue < high:
                return (co.address,)
        node = next((n for n in self._nodes if n <= queue < n + IN_NODE), 0)
        if node:
            return tuple(co.address for co in others if node in co.nodes)
        asleep = [co for co in others if co.state == ASLEEP and co.frames][:MOST_SEARCHED]
        return tuple(co.address for co in asleep if self._has(co, queue - IN_STRUCTURE, queue))

    def _has(self, co: Coroutine, low: int, high: int) -> bool:
        """Whether a pointer into that memory lies on a coroutine's stack."""
        base = co.sleeps_at[0]
        raw = self._memory.read(base, min(SEARCHED, co.stack[1] - base))
        words = struct.unpack(f"<{len(raw) // 8}Q", raw[: len(raw) // 8 * 8])
        return any(low <= word <= high for word in words)


def waits_for_others(co: Coroutine) -> bool:
    """Whether it is to be found out for whom a coroutine waits."""
    return wait_of(co).kind in (MUTEX, QUEUE)


def _is_place(word: int) -> bool:
    return word >= PAGE and not word % 8 and not word >> 47
