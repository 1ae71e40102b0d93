"""Where QEMUBH keeps what, from the code that fills it in (a version number tells nothing:
stable branches backport layout changes)."""

from __future__ import annotations

from dataclasses import dataclass

from capstone import x86

from qtrace.errors import ScanFailed
from qtrace.target.dataflow import CALLER_SAVED, Function, full_register
from qtrace.target.maps import Module

# The arguments of aio_bh_new_full() and aio_bh_schedule_oneshot_full() by their register. Before
# 0f08586c71 (6.1) the functions were called aio_bh_new() and ..._oneshot() and took no name.
FILLERS = (
    "aio_bh_schedule_oneshot_full", "aio_bh_new_full", "aio_bh_schedule_oneshot", "aio_bh_new",
)  # fmt: skip
ARGUMENTS = {"rdi": "ctx", "rsi": "callback", "rdx": "opaque", "rcx": "name"}


@dataclass(frozen=True, slots=True)
class BottomHalfLayout:
    """Offsets into QEMUBH, in bytes; ``name`` is -1 where it has none (before 6.1)."""

    ctx: int
    name: int
    callback: int
    opaque: int
    flags: int


def calibrate_bottom_half(module: Module) -> BottomHalfLayout:
    """Read the offsets from the functions that make, run and take off a bottom half.

    Raises ScanFailed when the code does not tell, or when two functions disagree.
    """
    stored = _stored(module)
    called = _called(module)
    flags = _flags(module)
    if not {"ctx", "callback", "opaque"} <= stored.keys() or flags is None:
        what = "where it keeps its flags" if stored else "where it keeps what"
        code = "takes a QEMUBH off its list" if stored else "fills a QEMUBH"
        raise ScanFailed(
            f"{module.name}: the code that {code} does not show {what}",
            "install the debug symbols of this QEMU, or record without --all",
        )
    if called is not None and called != (stored["callback"], stored["opaque"]):
        raise ScanFailed(
            f"{module.name}: aio_bh_call() and the code that fills a QEMUBH disagree",
            "record without --all",
        )
    return BottomHalfLayout(
        stored["ctx"], stored.get("name", -1), stored["callback"], stored["opaque"], flags
    )


def function_of(module: Module, symbol: str) -> Function | None:
    """A function's code, None when it has no symbol or no unwind information."""
    address = module.symbols.address(symbol)
    extent = module.frames.function(address) if address is not None else None
    return Function(module.elf, *extent) if extent else None


def _stored(module: Module) -> dict[str, int]:
    """Offset by argument: what these functions store into the memory that they allocate."""
    for symbol in FILLERS:
        function = function_of(module, symbol)
        if function is None:
            continue
        found = _stored_by(function, named=symbol.endswith("_full"))
        if {"ctx", "callback", "opaque"} <= found.keys():
            return found
    return {}


def _stored_by(function: Function, named: bool) -> dict[str, int]:
    holds = dict(ARGUMENTS) if named else {r: a for r, a in ARGUMENTS.items() if a != "name"}
    allocated: set[str] = set()
    found: dict[str, int] = {}
    for instruction in function.instructions.values():
        if instruction.group(x86.X86_GRP_CALL):
            holds = {r: a for r, a in holds.items() if r not in CALLER_SAVED}
            # Only the first call allocates.
            allocated = {"rax"} if not found else set()
            continue
        operands = instruction.operands
        if instruction.id == x86.X86_INS_MOV and len(operands) == 2:
            target, source = operands
            value = full_register(instruction, source.reg) if source.type == x86.X86_OP_REG else ""
            if target.type == x86.X86_OP_MEM:
                base = instruction.reg_name(target.mem.base) if target.mem.base else ""
                if base in allocated and value in holds and source.size == 8:
                    found.setdefault(holds[value], target.mem.disp)
                continue
            if target.type == x86.X86_OP_REG and value and source.size == 8:
                register = full_register(instruction, target.reg)
                argument, fresh = holds.get(value), value in allocated
                holds.pop(register, None)
                allocated.discard(register)
                if argument:
                    holds[register] = argument
                if fresh:
                    allocated.add(register)
                continue
        for written in {full_register(instruction, r) for r in instruction.regs_access()[1]}:
            holds.pop(written, None)
            allocated.discard(written)
    return found


def _called(module: Module) -> tuple[int, int] | None:
    """``bh->cb(bh->opaque)`` in aio_bh_call(): the offsets of both, where the call shows them."""
    function = function_of(module, "aio_bh_call")
    opaque: int | None = None
    for instruction in function.instructions.values() if function else ():
        operands = instruction.operands
        if (
            instruction.id == x86.X86_INS_MOV
            and operands[0].type == x86.X86_OP_REG
            and instruction.reg_name(operands[0].reg) == "rdi"
            and operands[1].type == x86.X86_OP_MEM
        ):
            opaque = operands[1].mem.disp
        elif (
            instruction.group(x86.X86_GRP_CALL)
            and operands[0].type == x86.X86_OP_MEM
            and operands[0].mem.base != x86.X86_REG_RIP
            and opaque is not None
        ):
            return operands[0].mem.disp, opaque
    return None


def _flags(module: Module) -> int | None:
    """aio_bh_poll() takes a bottom half off by a cmpxchg on its flags."""
    function = function_of(module, "aio_bh_poll")
    for instruction in function.instructions.values() if function else ():
        if instruction.id == x86.X86_INS_CMPXCHG:
            target = instruction.operands[0]
            if target.size == 4 and target.mem.disp > 0:
                return int(target.mem.disp)
    return None
