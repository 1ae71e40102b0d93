"""What a look needs of its target: a live process and a core file both have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from qtrace.target.aio.model import Ending
from qtrace.target.maps import Module, Space
from qtrace.target.memory import Memory


@dataclass(frozen=True, slots=True)
class State:
    """A thread's state: the system call it sleeps in (empty when in none), its registers by
    DWARF number (None while it runs), and the processor time it has used (0: not known)."""

    blocked_in: str
    registers: dict[int, int] | None
    cpu_ns: int = 0
    # A thread of the kernel's that bears the process's id.
    kernel: bool = False


class Source(Protocol):
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

    def stopped(self) -> bool:
        """Whether the target is stopped by somebody, so that nothing in it can move.

        Raises NoSuchProcess."""

    def ending(self) -> Ending | None:
        """The signal that a core was written for."""

    def thread_pointers(self) -> dict[int, int]:
        """fs_base by tid of the threads last listed, as far as known."""

    def pointer_guard(self) -> int | None:
        """What glibc mangles saved pointers with."""

    def outer_tid(self, tid: int) -> int:
        """The tid here of a thread that calls itself ``tid`` (pid namespaces)."""
