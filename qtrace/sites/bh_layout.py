"""Where QEMUBH keeps what, from the code that fills it in, compared with what runs it
(``qtrace.qemu.aio.calibration``)."""

from __future__ import annotations

import capstone
from capstone import x86

from qtrace.binary.code_x86_64 import after, full_register
from qtrace.binary.dataflow import Function
from qtrace.binary.module import Module
from qtrace.binary.module_code import ModuleDisassembly
from qtrace.binary.values import Argument, Fresh, State
from qtrace.errors import ScanFailed
from qtrace.qemu.aio.calibration import bottom_halves
from qtrace.sites.all_plan import BottomHalfLayout

# The arguments of aio_bh_new_full() and aio_bh_schedule_oneshot_full() by their register. Before
# QEMUBH had a name (``Layout.bh_name``) the functions were called aio_bh_new() and ..._oneshot().
FILLERS = (
    "aio_bh_schedule_oneshot_full", "aio_bh_new_full", "aio_bh_schedule_oneshot", "aio_bh_new",
)  # fmt: skip
ARGUMENTS = {"rdi": "ctx", "rsi": "callback", "rdx": "opaque", "rcx": "name"}


def calibrate_bottom_half(module: Module) -> BottomHalfLayout:
    """Read the offsets from the functions that make, run and take off a bottom half.

    Raises ScanFailed when the code does not tell, or when two functions disagree.
    """
    stored = _stored(module)
    run = bottom_halves(ModuleDisassembly(module))
    called, flags = (run.get("bh_cb"), run.get("bh_opaque")), run.get("bh_flags")
    if not {"ctx", "callback", "opaque"} <= stored.keys() or flags is None:
        what = "where it keeps its flags" if stored else "where it keeps what"
        code = "takes a QEMUBH off its list" if stored else "fills a QEMUBH"
        raise ScanFailed(
            f"{module.name}: the code that {code} does not show {what}",
            "install the debug symbols of this QEMU, or record without --all",
        )
    if None not in called and called != (stored["callback"], stored["opaque"]):
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
        found = stored_by(function, named=symbol.endswith("_full"))
        if {"ctx", "callback", "opaque"} <= found.keys():
            return found
    return {}


def stored_by(function: Function, named: bool) -> dict[str, int]:
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
