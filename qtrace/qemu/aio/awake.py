"""Which coroutines are entered: of the one that runs, what it last went to sleep with is old."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qtrace.machine.memory import Memory, read_word
from qtrace.qemu.aio.layout import Layout

# Coroutines that entered one another.
MAX_NESTED = 16


@dataclass(frozen=True)
class Awake:
    """The coroutines that threads are in.

    Attributes:
        threads: the thread that is in each of them.
        running: those that have entered no other: their stack is their thread's. What the others
            left by, when they entered one, is true.
    """

    threads: dict[int, int] = field(default_factory=dict)
    running: frozenset[int] = frozenset()


def entered(memory: Memory, layout: Layout, thread_pointer: int) -> list[int]:
    """The coroutines that a thread is in, the one that runs first; empty where none shows."""
    if layout.coroutine_tls is None or layout.co_caller is None:
        return []
    found: list[int] = []
    co = read_word(memory, thread_pointer + layout.coroutine_tls)
    while co and len(found) < MAX_NESTED:
        # Outside of any the variable holds the thread's own leader, which nobody entered.
        caller = read_word(memory, co + layout.co_caller)
        if not caller:
            break
        found.append(co)
        co = caller
    return found


def awake(memory: Memory, layout: Layout, thread_pointers: Mapping[int, int]) -> Awake:
    """As it is now, in all threads.

    Args:
        thread_pointers: fs_base by tid, as far as known.
    """
    chains = {tid: entered(memory, layout, at) for tid, at in thread_pointers.items()}
    return Awake(
        {co: tid for tid, chain in chains.items() for co in chain},
        frozenset(chain[0] for chain in chains.values() if chain),
    )
