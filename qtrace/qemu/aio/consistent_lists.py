"""Lists of a program that runs on meanwhile, read again until what was read can be true."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from qtrace.machine.memory import Memory, Pages

# Longer lists are taken for loops. A QEMU has a handful of bottom halves and a few hundred fds.
MAX_NODES = 4096
TRIES = 100
# ... of a string, in bytes.
LONGEST = 128

T = TypeVar("T")


class Torn(Exception):
    """What was read changed under the reader, again and again; ``what`` names it."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Inconsistent(Exception):
    """A reading that cannot be true: read again."""


class ChangingMemory:
    """The memory of a program that is not stopped.

    ``word``, ``bytes``, ``chain`` and ``linked`` raise ``Inconsistent``; they are for readings
    that are given to ``settled``.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = Pages(memory)
        self._constants: dict[int, str] = {}

    def forget(self) -> None:
        """From here on everything is read anew."""
        self._memory.forget()

    def settled(self, what: str, read: Callable[[], T]) -> T:
        """What two readings in a row agree on. Raises ``Torn``, which names ``what``."""
        before: T | None = None
        for _ in range(TRIES):
            self.forget()
            try:
                now = read()
            except Inconsistent:
                before = None
                continue
            if before is not None and now == before:
                return now
            before = now
        raise Torn(what)

    def peek(self, address: int) -> int | None:
        """A word as it is now, None where none can be read."""
        return self._memory.word(address)

    def read(self, address: int, size: int) -> bytes:
        """Bytes as they are now, fewer where there are no more."""
        return self._memory.read(address, size)

    def word(self, address: int) -> int:
        value = self._memory.word(address)
        if value is None:
            raise Inconsistent
        return value

    def bytes(self, address: int, size: int) -> bytes:
        raw = self._memory.read(address, size)
        if len(raw) != size:
            raise Inconsistent
        return raw

    def chain(self, node: int, follow: int, limit: int = MAX_NODES) -> Iterator[int]:
        """A singly linked list from its first node on."""
        for _ in range(limit):
            if not node:
                return
            yield node
            node = self.word(node + follow)
        raise Inconsistent

    def linked(self, head: int, follow: int, limit: int = MAX_NODES) -> Iterator[int]:
        """A QLIST or QTAILQ: each node points back to the pointer that leads to it."""
        place = head
        for _ in range(limit):
            node = self.word(place)
            if not node:
                return
            if self.word(node + follow + 8) != place:
                raise Inconsistent
            yield node
            place = node + follow
        raise Inconsistent

    def string(self, address: int) -> str:
        """A C string if it is printable, else empty."""
        raw = self._memory.read(address, LONGEST) if address else b""
        text = raw.split(b"\0", 1)[0].decode("ascii", "replace")
        return text if text.isprintable() else ""

    def constant(self, address: int) -> str:
        """``string`` of constant data, which is read once."""
        text = self._constants.get(address)
        if text is None:
            if len(self._constants) > MAX_NODES:
                self._constants.clear()
            text = self._constants[address] = self.string(address)
        return text
