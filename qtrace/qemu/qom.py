"""QEMU's objects as they lie in memory: an object's class names its type.

``Object`` begins with its ``ObjectClass``, that with its ``TypeImpl``, and that with the name
(include/qom/object.h, qom/object.c; so since QEMU 1.0). Whatever reads as one proves itself.
"""

from __future__ import annotations

import re
import struct

from qtrace.machine.memory import Memory, read_word

NAME = re.compile(rb"([a-zA-Z][\w.:+-]{2,79})\0")
# TypeImpl: class_size and instance_size follow the name.
INSTANCE_SIZE = 0x10
LARGEST = 1 << 16
# Of a TypeImpl so much is searched for its parent.
TYPE_BYTES = 0xA0
# Types that are made from one another: the longest such chain has seven.
DEEPEST = 16


class Objects:
    """The objects of one memory; a type is read once."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._types: dict[int, str] = {}
        self._parents: dict[int, list[int]] = {}

    def type_of(self, address: int) -> str:
        """The type's name of the object at an address, ``chardev-pipe``; empty where there is
        none."""
        if not address or address & 7 or address >> 47:
            return ""
        kind = self._type(address)
        if kind and kind not in self._types:
            self._types[kind] = self._name(kind)
        return self._types.get(kind, "")

    def size_of(self, address: int) -> int:
        """An object's size in bytes; 0 where it does not show."""
        return self._instance_size(self._type(address))

    def is_a(self, address: int, name: str) -> bool:
        """Whether there is an object at an address of that type, or made from it."""
        if not self.type_of(address):
            return False
        return any(self._name(kind) == name for kind in self._ancestry(self._type(address)))

    def size_of_parent(self, address: int, name: str) -> int:
        """How many bytes of an object are those of a type that it is made from; 0 where that is
        none."""
        kinds = self._ancestry(self._type(address))
        return next((self._instance_size(k) for k in kinds if self._name(k) == name), 0)

    def _ancestry(self, kind: int) -> list[int]:
        """A type, the one that it is made from, and so on: each has the next one's name and
        address among its members."""
        found = self._parents.get(kind)
        if found is None:
            found = [kind]
            while len(found) < DEEPEST and (parent := self._parent(found[-1])):
                found.append(parent)
            self._parents[kind] = found
        return found

    def _parent(self, kind: int) -> int:
        raw = self._memory.read(kind, TYPE_BYTES)
        words: list[int] = [w for (w,) in struct.iter_unpack("<Q", raw[: len(raw) // 8 * 8]) if w]
        # The first is its own name.
        texts = {self._text(word) for word in words[1:]} - {""}
        for word in words[1:]:
            if word != kind and not word & 7 and self._name(word) in texts:
                return word
        return 0

    def inside(self, address: int) -> list[int]:
        """The objects that an object points to, each once."""
        raw = self._memory.read(address, self.size_of(address))
        words = (word for (word,) in struct.iter_unpack("<Q", raw[: len(raw) // 8 * 8]))
        return [word for word in dict.fromkeys(words) if word != address and self.type_of(word)]

    def _type(self, address: int) -> int:
        object_class = read_word(self._memory, address) or 0
        inside = object_class and not object_class >> 47
        return (read_word(self._memory, object_class) or 0) if inside else 0

    def _name(self, kind: int) -> str:
        return self._text(read_word(self._memory, kind) or 0)

    def _text(self, address: int) -> str:
        if not address or address >> 47:
            return ""
        match = NAME.match(self._memory.read(address, 80))
        return match[1].decode() if match else ""

    def _instance_size(self, kind: int) -> int:
        size = read_word(self._memory, kind + INSTANCE_SIZE) if kind else None
        return size if size and size < LARGEST else 0
