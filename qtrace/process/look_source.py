"""What a look needs of its target: a live process and a core file both have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from qtrace.binary.module import Module
from qtrace.machine.memory import Memory
from qtrace.process.maps import Space
from qtrace.qemu.aio.model import Ending


@dataclass(frozen=True, slots=True)
class State:
    """A thread's state.

    Attributes:
        blocked_in: the system call it sleeps in, empty when in none.
        registers: by DWARF number; None while it runs.
        cpu_ns, turns: the processor time it has used, and how many times it was given a
            processor; 0 where that is not known.
        kernel: it is a thread of the kernel's that bears the process's id.
        arguments: of the system call that it sleeps in.
        letter, wchan: see ``Thread.state`` and ``Thread.wchan``.
    """

    blocked_in: str
    registers: dict[int, int] | None
    cpu_ns: int = 0
    kernel: bool = False
    turns: int = 0
    arguments: tuple[int, ...] = ()
    letter: str = ""
    wchan: str = ""


class LookSource(Protocol):
    """A QEMU to look at. ``pid`` is the main thread's tid."""

    @property
    def pid(self) -> int: ...
    @property
    def program(self) -> str: ...
    @property
    def memory(self) -> Memory: ...
    @property
    def space(self) -> Space: ...
    @property
    def binary(self) -> Module: ...

    def threads(self) -> dict[int, str]:
        """Names by tid, empty names where they are not known. Raises NoSuchProcess."""

    def state(self, tid: int) -> State:
        """A thread's state now."""

    def held(self, tid: int) -> str:
        """Why a thread cannot move, whatever it waits for, as ``Look.held``; empty when it can.

        Raises NoSuchProcess: the process is gone, asked for its main thread."""

    def ending(self) -> Ending | None:
        """The signal that a core was written for."""

    def thread_pointers(self) -> dict[int, int]:
        """fs_base by tid of the threads last listed, as far as known."""

    def pointer_guard(self) -> int | None:
        """What glibc mangles saved pointers with."""

    def guarded(self) -> list[tuple[int, int]]:
        """Anonymous memory that begins with an inaccessible page, as stacks do: from that page's
        start to the end of what may be written."""

    def outer_tid(self, tid: int) -> int:
        """The tid here of a thread that calls itself ``tid`` (pid namespaces)."""
