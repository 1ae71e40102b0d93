"""The block layer of a live QEMU, or of a core, as ``qtrace.qemu.block.block_walk`` reads it."""

from __future__ import annotations

from qtrace.inspection.layout_cache import block_layout
from qtrace.inspection.looker import Looker
from qtrace.machine.memory import Pages
from qtrace.process.own_memory import own_memory
from qtrace.process.stack import COROUTINE
from qtrace.qemu.aio.awake import Awake
from qtrace.qemu.aio.model import Look
from qtrace.qemu.block.block_model import BlockLook
from qtrace.qemu.block.block_walk import BlockReader, Unwound

# The frames of a coroutine that is free: qemu_coroutine_switch() in its trampoline, at the C
# library's first function.
FREE_FRAMES = 3
# Ways to the same leaf that are kept.
MOST_ALIKE = 32
WORD = 8


class BlockLooker:
    """Takes looks at the block layer of one QEMU."""

    def __init__(self, looker: Looker) -> None:
        self._reader = BlockReader(_Source(looker), block_layout(looker.source.binary))

    def look(self, look: Look) -> BlockLook:
        """What is there now; ``look`` has just been taken, with its details."""
        return self._reader.look(look)


class _Source:
    """As ``qtrace.qemu.block.block_walk.BlockSource``."""

    def __init__(self, looker: Looker) -> None:
        self._looker = looker
        # What stacks hold is followed, too: some of it leads to the guest's memory.
        self.memory = own_memory(looker.source)
        self.layout = looker.layout
        self.architecture = looker.architecture
        self.pointer_guard = looker.source.pointer_guard
        self.guarded = looker.source.guarded
        self.name = looker.name
        # Of chains that were unwound: where each return address lies, from the stack pointer on.
        self._known: dict[int, list[tuple[tuple[tuple[int, int], ...], Unwound]]] = {}

    def awake(self) -> Awake:
        return self._looker.awake()

    def unwound(self, co: int, registers: dict[str, int], memory: Pages) -> Unwound:
        machine = self.architecture
        stack_pointer = machine.stack_pointer
        base, left_by = registers[machine.stack_pointer_name], registers[machine.pc_name]
        alike = self._known.setdefault(left_by, [])
        for places, unwound in alike:
            # A thousand coroutines wait in a handful of ways: the same functions called from the
            # same places, at the same places of the stack.
            if all(memory.word(base + place) == pc for place, pc in places):
                return unwound
        unwinder = self._looker.unwinder
        known = {machine.numbers[name]: value for name, value in registers.items()}
        chain = unwinder.unwind(known, memory.word)
        whole = chain.end == COROUTINE
        if whole and len(chain.frames) <= FREE_FRAMES:
            return Unwound((), True, True)
        names = unwinder.names(chain)
        unwound = Unwound(tuple(names[:-2] if whole else names), whole, False)
        # Elsewhere a return address lies at another place in each frame.
        if whole and len(alike) < MOST_ALIKE and machine.pushes_return_address:
            frames = chain.frames[1:]
            places = tuple(
                (frame.registers[stack_pointer] - WORD - base, frame.pc) for frame in frames
            )
            alike.append((places, unwound))
        return unwound
