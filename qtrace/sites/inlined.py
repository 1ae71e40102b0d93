"""One-shot bottom halves that are made where they are scheduled: nobody calls a function for it.

Link-time optimisation (Ubuntu's builds) puts aio_bh_schedule_oneshot_full() into each of its
callers. What is left of it is its body (util/async.c)::

    bh = g_new(QEMUBH, 1);
    *bh = (QEMUBH){ .ctx = ctx, .cb = cb, .opaque = opaque, .name = name };
    aio_bh_enqueue(bh, BH_SCHEDULED | BH_ONESHOT);

So every call of aio_bh_enqueue() with these flags is a schedule, and what the function stored into
the memory that it has just allocated is what it schedules. The stores come in any order and size.
"""

from __future__ import annotations

from dataclasses import dataclass

import capstone
from capstone import x86

from qtrace.binary.cfi import CallFrames
from qtrace.binary.code_x86_64 import after, full_register
from qtrace.binary.dataflow import Function
from qtrace.binary.elf import Elf
from qtrace.binary.values import (
    Argument,
    Constant,
    Fresh,
    Loaded,
    Pair,
    Returned,
    State,
    Step,
    Value,
)
from qtrace.knowledge import ONESHOT, SCHEDULED
from qtrace.machine.arch_x86_64 import X86_64

SCHEDULED_ONESHOT = SCHEDULED | ONESHOT
# The first arguments of aio_bh_schedule_oneshot_full() by their register.
ARGUMENTS = {"rdi": "ctx", "rsi": "callback", "rdx": "opaque", "rcx": "name"}

WHOLE = frozenset({"movups", "movaps", "movdqu", "movdqa", "movupd", "movapd"})
LOW, HIGH = frozenset({"movq", "movlps", "movlpd"}), frozenset({"movhps", "movhpd"})
ZEROS = frozenset({"pxor", "xorps", "xorpd"})


@dataclass(frozen=True, slots=True)
class Enqueue:
    """aio_bh_enqueue(bh, flags): its link-time address, and the memory that it is given.

    ``size`` is sizeof(QEMUBH), the others are offsets into it, in bytes; ``name`` is -1 where it
    has none.
    """

    address: int
    size: int
    ctx: int
    callback: int
    opaque: int
    name: int


def find_enqueue(elf: Elf, frames: CallFrames, scheduler: int, named: bool) -> Enqueue | None:
    """The function that aio_bh_schedule_oneshot_full() ends in; None where that is inlined (7.2)
    or the code does not show it.

    Args:
        scheduler: link-time address of aio_bh_schedule_oneshot_full().
        named: it has a name argument.
    """
    extent = frames.function(scheduler)
    if extent is None or elf.architecture is not X86_64:
        return None
    function = Function(elf, *extent)
    stored = _stored_by(function, named)
    call, size = _allocation(function)
    if not size or not {"ctx", "callback", "opaque"} <= stored.keys():
        return None
    for address, state in function.states(FreshMemory(size)).items():
        callee = function.callee(address)
        if callee is not None and enqueues(state) and state["rdi"] == Fresh(call):
            name = stored.get("name", -1)
            return Enqueue(callee, size, stored["ctx"], stored["callback"], stored["opaque"], name)
    return None


def _stored_by(function: Function, named: bool) -> dict[str, int]:
    """Offset by argument (``ARGUMENTS``): which of them a function stores where, into the memory
    that its first call allocates; ``named``: it has a fourth one."""
    arguments = ARGUMENTS if named else {r: a for r, a in ARGUMENTS.items() if a != "name"}
    states = function.states(_allocating, arguments)
    allocated: Fresh | None = None
    found: dict[str, int] = {}
    for address, instruction in function.instructions.items():
        if instruction.id != x86.X86_INS_MOV:
            continue
        target, source = instruction.operands
        state = states.get(address, {})
        if target.type != x86.X86_OP_MEM or source.type != x86.X86_OP_REG or source.size != 8:
            continue
        value = state.get(full_register(instruction, source.reg))
        base = state.get(full_register(instruction, target.mem.base)) if target.mem.base else None
        if isinstance(value, Argument) and isinstance(base, Fresh):
            allocated = allocated or base
            if base == allocated:
                found.setdefault(arguments[value.register], target.mem.disp)
    return found


def _allocating(instruction: capstone.CsInsn, before: State) -> State:
    """The state after one instruction; what a call returns may be memory that it allocates."""
    state = after(instruction, before)
    if instruction.group(x86.X86_GRP_CALL):
        return {**state, "rax": Fresh(instruction.address)}
    return state


def memory_step(elf: Elf) -> Step | None:
    """What follows all memory that calls return; None where nothing here reads the code: of other
    processors' only calls of the function itself are found."""
    return FreshMemory() if elf.architecture is X86_64 else None


def enqueues(state: State) -> bool:
    """Whether fresh memory is handed over to be scheduled once."""
    return state.get("rsi") == Constant(SCHEDULED_ONESHOT) and isinstance(state.get("rdi"), Fresh)


def _allocation(function: Function) -> tuple[int, int]:
    """Its first call, and how many bytes that asks for, 0 when that does not show."""
    states = function.states()
    for address, instruction in sorted(function.instructions.items()):
        if instruction.group(x86.X86_GRP_CALL):
            size = states.get(address, {}).get("rdi")
            return address, size.value if isinstance(size, Constant) else 0
    return 0, 0


def slot(state: State, offset: int) -> Value | None:
    """What was stored at an offset into the memory that rdi points to, None if not known."""
    fresh = state.get("rdi")
    return stored(state, fresh, offset) if isinstance(fresh, Fresh) else None


def slots(state: State) -> list[Value]:
    """All that was stored into the memory that rdi points to."""
    fresh = state.get("rdi")
    prefix = _key(fresh, 0)[:-1] if isinstance(fresh, Fresh) else "?"
    return [value for key, value in state.items() if key.startswith(prefix)]


def stored(state: State, fresh: Fresh, offset: int) -> Value | None:
    """The same of memory that any register may point to."""
    return state.get(_key(fresh, offset))


def _key(fresh: Fresh, offset: int) -> str:
    return f"{fresh.call:x}+{offset}"


class FreshMemory:
    """The state after one instruction, with what is stored into memory just allocated.

    A call leaves it as it is: nobody else knows it before it is enqueued.
    """

    def __init__(self, size: int = 0) -> None:
        """``size``: of the allocations that are followed, in bytes; 0: what each call returns."""
        self._size = size

    def __call__(self, instruction: capstone.CsInsn, before: State) -> State:
        if instruction.group(x86.X86_GRP_CALL):
            return self._called(instruction, before)
        operands = instruction.operands
        if operands:
            target, source = operands[0], operands[min(1, len(operands) - 1)]
            if target.type == x86.X86_OP_MEM:
                return self._stored(instruction, target, source, before)
            if target.type == x86.X86_OP_REG:
                name = str(instruction.reg_name(target.reg))
                if name.startswith("xmm"):
                    return _vector(instruction, name, source, before)
                if instruction.mnemonic == "mov" and source.type == x86.X86_OP_MEM:
                    fresh = _pointed(instruction, source, before)
                    value = before.get(_key(fresh, source.mem.disp)) if fresh else None
                    if value is not None and source.size == 8:
                        return {**before, full_register(instruction, target.reg): value}
        return after(instruction, before)

    def _called(self, instruction: capstone.CsInsn, before: State) -> State:
        state = {k: v for k, v in after(instruction, before).items() if not k.startswith("xmm")}
        if not self._size or before.get("rdi") == Constant(self._size):
            # The same call in a loop: what it returned before is not this.
            old = f"{instruction.address:x}+"
            state = {k: v for k, v in state.items() if not k.startswith(old)}
            state["rax"] = Fresh(instruction.address)
        return state

    def _stored(
        self,
        instruction: capstone.CsInsn,
        target: x86.X86Op,
        source: x86.X86Op,
        before: State,
    ) -> State:
        if not target.access & capstone.CS_AC_WRITE:
            return after(instruction, before)
        value: Value | None = None
        if source.type == x86.X86_OP_REG:
            register = str(instruction.reg_name(source.reg))
            value = before.get(
                register if register.startswith("xmm") else full_register(instruction, source.reg)
            )
        if target.mem.base == x86.X86_REG_RIP:
            # What a function returned is kept: the lazily made context of iohandler_get_...().
            if isinstance(value, Returned) and instruction.mnemonic == "mov":
                kept = Loaded(instruction.address + instruction.size + target.mem.disp)
                return {**before, full_register(instruction, source.reg): kept}
            return before
        fresh = _pointed(instruction, target, before)
        if fresh is None:
            return before
        size = target.size or 8
        gone = {_key(fresh, target.mem.disp + n) for n in range(-7, size)}
        state = {k: v for k, v in before.items() if k not in gone}
        words: list[Value | None] = [None]
        if instruction.mnemonic == "mov" and size == 8:
            is_number = source.type == x86.X86_OP_IMM
            words = [Constant(source.imm) if is_number else value]
        elif isinstance(value, Pair):
            if instruction.mnemonic in WHOLE:
                words = [value.low, value.high]
            elif instruction.mnemonic in LOW | HIGH:
                words = [value.low if instruction.mnemonic in LOW else value.high]
        for index, word in enumerate(words):
            if word is not None:
                state[_key(fresh, target.mem.disp + 8 * index)] = word
        return state


def _pointed(instruction: capstone.CsInsn, operand: x86.X86Op, state: State) -> Fresh | None:
    """The fresh memory that an operand lies in."""
    if not operand.mem.base or operand.mem.index:
        return None
    value = state.get(str(instruction.reg_name(operand.mem.base)))
    return value if isinstance(value, Fresh) else None


def _vector(instruction: capstone.CsInsn, register: str, source: x86.X86Op, before: State) -> State:
    """After an instruction that writes a vector register: two pointers are stored as one."""
    state = {k: v for k, v in before.items() if k != register}
    old = before.get(register)
    low = old.low if isinstance(old, Pair) else None
    word: Value | None = None
    if source.type == x86.X86_OP_MEM and source.mem.base == x86.X86_REG_RIP:
        word = Loaded(instruction.address + instruction.size + source.mem.disp)
    elif source.type == x86.X86_OP_REG:
        name = str(instruction.reg_name(source.reg))
        word = before.get(
            name if name.startswith("xmm") else full_register(instruction, source.reg)
        )
    mnemonic = instruction.mnemonic
    if mnemonic in ZEROS:
        if source.type == x86.X86_OP_REG and instruction.reg_name(source.reg) == register:
            state[register] = Pair(Constant(0), Constant(0))
    elif mnemonic == "punpcklqdq":
        state[register] = Pair(low, word.low if isinstance(word, Pair) else None)
    elif mnemonic in WHOLE:
        if isinstance(word, Pair):
            state[register] = word
    elif mnemonic in LOW:
        state[register] = Pair(word.low if isinstance(word, Pair) else word, None)
    elif mnemonic in HIGH or (mnemonic == "pinsrq" and instruction.operands[2].imm == 1):
        state[register] = Pair(low, word)
    return state
