"""For whom coroutines wait that sleep in a CoMutex or a CoQueue, as QEMU's memory has it."""

from __future__ import annotations

import struct
from dataclasses import replace

from qtrace.qemu.block.block_model import ASLEEP, Coroutine
from qtrace.qemu.block.holders import Holders

QUEUED = ("qemu_coroutine_switch", "qemu_co_queue_wait_impl")
LOCKED = ("qemu_coroutine_switch", "qemu_co_mutex_lock_slowpath")
ASKED = ("qemu_coroutine_switch", "qio_channel_yield", "nbd_receive_reply")
HOLDER, NEXT = 0x28, 0x50
# What the queue is a part of, and where it has it.
OWNER, QUEUE = 0x8000, 0x8090


class _Memory:
    def __init__(self) -> None:
        self._bytes = bytearray(0x20000)

    def put(self, address: int, *words: int) -> None:
        struct.pack_into(f"<{len(words)}Q", self._bytes, address, *words)

    def read(self, address: int, size: int) -> bytes:
        return bytes(self._bytes[address : address + size])


def coroutine(address: int, functions: tuple[str, ...]) -> Coroutine:
    """Its stack lies above it."""
    stack = (address + 0x100, address + 0x900)
    return Coroutine(
        address, "entry", ASLEEP, frames=functions, sleeps_at=(stack[0] + 0x80, 1), stack=stack
    )


FIRST, SECOND, THIRD = (coroutine(at, QUEUED) for at in (0x1000, 0x2000, 0x3000))
SENDER, STRANGER = coroutine(0x4000, ASKED), coroutine(0x5000, ASKED)


def holders(memory: _Memory, *coroutines: Coroutine, nodes: tuple[int, ...] = ()) -> Holders:
    return Holders(memory, {co.address: co for co in coroutines}, HOLDER, nodes)


def queue_of(memory: _Memory, at: int, *members: Coroutine) -> None:
    memory.put(at, members[0].address, members[-1].address + NEXT)
    for one, following in zip(members, (*members[1:], None), strict=True):
        memory.put(one.address + NEXT, following.address if following else 0)


def test_who_waits_in_a_queue_waits_for_those_that_have_its_owner_in_hand() -> None:
    memory = _Memory()
    queue_of(memory, QUEUE, FIRST, SECOND, THIRD)
    memory.put(SENDER.sleeps_at[0] + 0x40, OWNER)
    found = holders(memory, FIRST, SECOND, THIRD, SENDER, STRANGER).added(
        {co.address: (7, OWNER) for co in (FIRST, SECOND, THIRD)}
    )
    waiting = (QUEUE, (SENDER.address,))
    assert [(co.queue, co.holders) for co in found] == [waiting] * 3 + [(0, ())] * 2


def test_a_queue_on_a_stack_is_its_coroutines() -> None:
    """A request that overlaps with another one waits in that one's queue."""
    memory = _Memory()
    at = STRANGER.stack[0] + 0x200
    queue_of(memory, at, FIRST)
    found = holders(memory, FIRST, SENDER, STRANGER).added({FIRST.address: (at - 0x60,)})
    assert found[0] == replace(FIRST, queue=at, holders=(STRANGER.address,))


def test_a_queue_of_a_node_is_waited_in_for_others_at_that_node() -> None:
    memory = _Memory()
    node, at = 0x10000, 0x14100
    queue_of(memory, at, FIRST)
    there = replace(SENDER, nodes=(node,))
    found = holders(memory, FIRST, there, STRANGER, nodes=(node,)).added({FIRST.address: (node,)})
    assert (found[0].queue, found[0].holders) == (at, (SENDER.address,))


def test_words_that_are_no_queue_show_none() -> None:
    memory = _Memory()
    # It leads to the coroutine, but not on to the end.
    memory.put(QUEUE, FIRST.address, SECOND.address + NEXT)
    memory.put(FIRST.address + NEXT, THIRD.address)
    found = holders(memory, FIRST, SECOND, SENDER).added({FIRST.address: (OWNER,)})
    assert (found[0].queue, found[0].holders) == (0, ())


def test_a_mutex_names_its_holder() -> None:
    memory = _Memory()
    memory.put(OWNER + HOLDER, SENDER.address)
    locked = replace(FIRST, frames=LOCKED)
    found = holders(memory, locked, SENDER).added({locked.address: (OWNER,)})
    assert found[0].holders == (SENDER.address,)
