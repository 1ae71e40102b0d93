"""A hit's stack as names; the same chain is unwound once.

A flood of hits brings few different chains. Which one it is shows at a few words: the return
addresses of the chain, where they lay, and whatever a frame may have been found by other than the
stack pointer. Where they all are as they were when a chain was unwound, unwinding would go the
same way again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from qtrace.machine.architectures import HOST
from qtrace.process import stack
from qtrace.process.hit import Hit
from qtrace.process.stack import Chain, CopiedStack, Unwinder
from qtrace.trace.schema import COROUTINE, TRUNCATED, UNREADABLE

# A chain that does not reach its thread's first function says so at its root.
ROOT_MARKS = {
    stack.COROUTINE: COROUTINE,
    stack.TRUNCATED: TRUNCATED,
    stack.UNREADABLE: UNREADABLE,
}
# So many chains are kept for each site.
KEPT = 32
WORD = 8
# More than what the programs of probes/ copy of a stack whose end is known.
MUCH = 4096


@dataclass(frozen=True, slots=True)
class _Known:
    """A chain, and what a stack must hold for it to be the same one.

    Attributes:
        words: takes the return addresses out of a stack's words.
        returns: they are these.
        least: as many words there must be.
        pointers: words, or registers, that point into the stack, as distances from the stack
            pointer: a frame may have been found by them.
    """

    words: Callable[[Any], Any]
    returns: Any
    least: int
    pointers: tuple[tuple[bool, int, int], ...]
    frames: tuple[str, ...]

    def fits(self, words: Any, registers: dict[int, int]) -> bool:
        if len(words) < self.least or self.words(words) != self.returns:
            return False
        base = registers[HOST.stack_pointer]
        return all(
            (registers[where] if register else words[where]) - base == distance
            for register, where, distance in self.pointers
        )


class Stacks:
    """Unwinds the stacks of hits.

    Args:
        whole: is told, where much more of a stack was copied than was needed, the stack pointer
            and where the outermost frame ends; and no end (0) where too little was copied.
    """

    def __init__(
        self, unwinder: Unwinder, whole: Callable[[int, int], None] = lambda base, end: None
    ) -> None:
        self._unwinder = unwinder
        self._whole = whole
        self._known: dict[int, list[_Known]] = {}

    def frames(self, hit: Hit) -> tuple[str, ...]:
        """Frame names, root first, with a mark where the chain is not whole."""
        kept = self._known.setdefault(hit.address, [])
        words = memoryview(hit.stack)[: len(hit.stack) // WORD * WORD].cast("Q")
        for place, known in enumerate(kept):
            if known.fits(words, hit.registers):
                if place:
                    kept.insert(0, kept.pop(place))
                self._tell(hit, known.least)
                return known.frames
        reads: list[tuple[int, int]] = []
        memory = CopiedStack(hit.stack_base, hit.stack)

        def word(address: int) -> int | None:
            value = memory.word(address)
            if value is not None:
                reads.append((address, value))
            return value

        chain = self._unwinder.unwind(hit.registers, word)
        names = self._unwinder.names(chain)
        mark = ROOT_MARKS.get(chain.end)
        frames = tuple(reversed([*names, mark] if mark else names))
        known_now = _known(hit, chain, reads, frames)
        if known_now is not None:
            kept.insert(0, known_now)
            del kept[KEPT:]
            self._tell(hit, known_now.least)
        elif chain.end == stack.TRUNCATED and len(hit.stack) < MUCH:
            self._whole(hit.stack_base, 0)
        return frames

    def _tell(self, hit: Hit, words: int) -> None:
        if len(hit.stack) >= MUCH:
            self._whole(hit.stack_base, hit.stack_base + words * WORD)


def _known(
    hit: Hit, chain: Chain, reads: list[tuple[int, int]], frames: tuple[str, ...]
) -> _Known | None:
    """What to know a chain by; None of one that another copy or later rules may make longer."""
    if chain.end not in (stack.COMPLETE, stack.COROUTINE) or len(chain.frames) < 2:
        return None
    if not HOST.pushes_return_address:
        # Where it lies is not the same in each frame.
        return None
    base, end = hit.stack_base, hit.stack_base + len(hit.stack)
    # Each lies just below the frame of its function's caller.
    slots = {frame.registers[HOST.stack_pointer] - WORD for frame in chain.frames[1:]}
    # Of the outermost frame it may have been read that there is none to return to.
    last = max(number for number, (address, _value) in enumerate(reads) if address in slots)
    returns, pointers = [], []
    for number, (address, value) in enumerate(reads):
        place, rest = divmod(address - base, WORD)
        if rest:
            return None
        if address in slots or (number > last and value == 0):
            returns.append((place, value))
        elif base <= value < end:
            pointers.append((False, place, value - base))
    pointers += [
        (True, register, value - base)
        for register, value in hit.registers.items()
        if base <= value < end and register not in (HOST.stack_pointer, HOST.pc)
    ]
    places = [place for place, _value in returns]
    if len(places) < 2:
        return None
    return _Known(
        words=itemgetter(*places),
        returns=tuple(value for _place, value in returns),
        least=max(address - base for address, _value in reads) // WORD + 1,
        pointers=tuple(pointers),
        frames=frames,
    )
