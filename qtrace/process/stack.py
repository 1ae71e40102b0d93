"""From registers and a copy of stack memory to a call chain."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qtrace.binary.cfi import Rule
from qtrace.binary.module import Module
from qtrace.machine.architecture import Architecture
from qtrace.process.jit import JitCode
from qtrace.process.maps import Space
from qtrace.qemu.aio.mechanics import JIT_CODE

MAX_FRAMES = 256
# Locals of one function, in bytes, that are searched for where its frame ends.
LARGEST_FRAME = 1 << 14
# How often a process without translated code is asked whether it has some by now.
JIT_PERIOD_S = 0.05

# How a chain ended: at the thread's first function, at a coroutine's trampoline, where the
# copied memory ended, or at code without unwind rules.
COMPLETE, COROUTINE, TRUNCATED, UNREADABLE = "complete", "coroutine", "truncated", "unreadable"

ReadWord = Callable[[int], int | None]


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: run-time pc, stack pointer, and the registers as far as they are known."""

    pc: int
    registers: dict[int, int]


@dataclass(frozen=True, slots=True)
class Chain:
    """A call chain, leaf first, and how it ended."""

    frames: list[Frame]
    end: str

    @property
    def pcs(self) -> list[int]:
        return [frame.pc for frame in self.frames]


class CopiedStack:
    """The memory at and above a stack pointer, as a probe copied it."""

    def __init__(self, base: int, data: bytes) -> None:
        self._base = base
        self._data = data

    def word(self, address: int) -> int | None:
        offset = address - self._base
        if offset < 0 or offset + 8 > len(self._data):
            return None
        return int(struct.unpack_from("<Q", self._data, offset)[0])


class Unwinder:
    """Unwinds by .eh_frame, and names what it finds."""

    def __init__(
        self, space: Space, architecture: Architecture, *, refreshing: bool = True
    ) -> None:  # fmt: skip
        """
        Args:
            refreshing: read the mappings again when a pc lies in none. For stacks that may have
                changed while they were read, that is the caller's to decide.
        """
        self._space = space
        self._architecture = architecture
        self._refreshing = refreshing
        self._jit: list[JitCode] = []
        self._read_jit: Callable[[], list[JitCode]] = list
        self._next_read = 0.0
        self._rules: dict[int, tuple[Rule | None, bool]] = {}
        self._names: dict[tuple[int, bool], str] = {}

    def learn_jit(self, read: Callable[[], list[JitCode]]) -> None:
        """Take the rules of translated code (``read_jit_code``).

        A program that has just been started has none yet: it is asked again when code without
        a file is met, until there are some.
        """
        self._read_jit = read
        self._jit = read()
        self._rules.clear()
        self._names.clear()

    def unwind(self, registers: Mapping[int, int], word: ReadWord) -> Chain:
        """The call chain from a set of registers.

        Args:
            registers: by DWARF number, as far as they are known: pc and stack pointer at least.
            word: reads 8 bytes of the target's memory, None where there are none.
        """
        machine = self._architecture
        counter, stack, base = machine.pc, machine.stack_pointer, machine.frame_pointer
        column, kept = machine.return_address, machine.callee_saved
        known = dict(registers)
        frames = [Frame(known[counter], known)]
        while len(frames) < MAX_FRAMES:
            pc = known[counter]
            leaf = len(frames) == 1
            rule, trampoline = self._rule(pc, leaf)
            if trampoline:
                return Chain(frames, COROUTINE)
            if rule is None:
                return Chain(frames, UNREADABLE)
            if rule.ends:
                return Chain(frames, COMPLETE)
            if rule.cfa_register == base and base not in known:
                # Of a thread that was not stopped only pc and stack pointer are known.
                pointer = self._frame_pointer(pc, known[stack], word) if stack in known else None
                known |= {} if pointer is None else {base: pointer}
            if rule.cfa_register not in known:
                return Chain(frames, UNREADABLE)
            cfa = known[rule.cfa_register] + rule.cfa_offset
            # What a callee may clobber is not known in the caller.
            caller = {r: known[r] for r in kept if r in known}
            if leaf and column != counter and column in known:
                # Nothing was called yet that could have changed it.
                caller[column] = known[column]
            for register, offset in rule.saved:
                value = word(cfa + offset)
                if value is None:
                    return Chain(frames, TRUNCATED)
                caller[register] = value
            caller[stack] = cfa
            if column not in caller:
                return Chain(frames, UNREADABLE)
            caller[counter] = machine.code_address(caller[column])
            if not caller[counter]:
                return Chain(frames, COMPLETE)
            known = caller
            frames.append(Frame(known[counter], known))
        return Chain(frames, TRUNCATED)

    def names(self, chain: Chain) -> list[str]:
        """The frames' names, leaf first: ``name+0xoffset`` or ``binary@0xaddress``."""
        return [self.name(pc, leaf=index == 0) for index, pc in enumerate(chain.pcs)]

    def name(self, pc: int, *, leaf: bool) -> str:
        """The name of a pc; any but a leaf's is a return address, one past its call."""
        key = (pc, leaf)
        if key not in self._names:
            self._names[key] = self._name(pc, 0 if leaf else 1)
        return self._names[key]

    def return_name(self, pc: int) -> str:
        """The name of a word that may be a return address, empty when no call precedes it."""
        found = self._space.find(pc)
        module = found[0] if found else None
        if module is None:
            return ""
        vaddr = pc - module.bias
        called = _follows_a_call(module, vaddr)
        return self.name(pc, leaf=False) if called else ""

    def _name(self, pc: int, back: int) -> str:
        found = self._find(pc)
        if found is None:
            return f"?@{pc:#x}"
        module, mapping = found
        if module is None:
            code = self._jit_code(pc)
            if code is not None:
                return f"{JIT_CODE}+{pc - code.start:#x}"
            return f"{mapping or 'anonymous'}@{pc:#x}"
        vaddr = pc - module.bias
        function = module.function_name(vaddr - back)
        if function is None:
            return f"{module.name}@{vaddr:#x}"
        name, offset = function
        return f"{name}+{offset + back:#x}" if offset + back else name

    def _rule(self, pc: int, leaf: bool) -> tuple[Rule | None, bool]:
        """The rule at a pc, and whether it is where makecontext() lets a coroutine return."""
        key = pc if leaf else -pc
        if key not in self._rules:
            found = self._find(pc)
            module = found[0] if found else None
            if module is None:
                code = self._jit_code(pc)
                return (code.rule if code else None), False
            vaddr = pc - module.bias
            trampoline = not leaf and _is_trampoline(module, vaddr)
            rule = None if trampoline else module.frames.rule(vaddr if leaf else vaddr - 1)
            if rule is not None and rule.ends and not leaf and _begins_context(module, vaddr):
                trampoline, rule = True, None
            self._rules[key] = (rule, trampoline)
        return self._rules[key]

    def _frame_pointer(self, pc: int, stack_pointer: int, word: ReadWord) -> int | None:
        """The frame pointer of a function that keeps one, None where it does not show.

        It points to the caller's, beside the return address: that of a call to this function,
        or of an indirect one.
        """
        found = self._find(pc)
        module = found[0] if found else None
        function = module.frames.function(pc - module.bias - 1) if module else None
        if module is None or function is None:
            return None
        start = function[0] + module.bias
        for place in range(stack_pointer, stack_pointer + LARGEST_FRAME, 8):
            back = word(place + 8)
            if back is None:
                return None
            if self._returns_from(self._architecture.code_address(back), start, word):
                return place
        return None

    def _returns_from(self, back: int, start: int, word: ReadWord) -> bool:
        """Whether a word is the return address of a call to a function, as far as it shows: also by
        way of a stub that jumps to it (the PLT's, of a function of another file)."""
        found = self._space.find(back)
        module = found[0] if found else None
        if module is None:
            return False
        machine = self._architecture
        size = machine.call_size
        code = module.elf.read(back - module.bias - size, size)
        called = machine.called(code, back)
        if called is None:
            return machine.follows_a_call(code)
        stub = module.elf.read(called - module.bias, machine.stub_size)
        slot = machine.jump_slot(stub, called)
        return called == start or (slot is not None and word(slot) == start)

    def _jit_code(self, pc: int) -> JitCode | None:
        if not self._jit and time.monotonic() >= self._next_read:
            self._next_read = time.monotonic() + JIT_PERIOD_S
            self._jit = self._read_jit()
        return next((code for code in self._jit if code.start <= pc < code.end), None)

    def _find(self, pc: int) -> tuple[Module | None, str] | None:
        found = self._space.find(pc)
        if found is None and self._refreshing:
            # A library that was loaded after the last look.
            self._space.refresh()
            found = self._space.find(pc)
        return found


def _is_trampoline(module: Module, vaddr: int) -> bool:
    function = module.frames.function(vaddr)
    return function is not None and function[0] == vaddr and not _follows_a_call(module, vaddr)


def _begins_context(module: Module, vaddr: int) -> bool:
    """Whether a function that has no caller goes on there after calling a coroutine's."""
    places = module.elf.architecture.context_calls
    function = module.frames.function(vaddr - 1) if places else None
    return function is not None and vaddr - function[0] in places


def _follows_a_call(module: Module, vaddr: int) -> bool:
    machine = module.elf.architecture
    return machine.follows_a_call(module.elf.read(vaddr - machine.call_size, machine.call_size))
