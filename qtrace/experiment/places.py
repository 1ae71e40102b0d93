"""Where an experiment can take hold of QEMU: found in the code, free of any uprobe.

A recording by eBPF has its uprobes on the calls that schedule a bottom half and on the first
instruction of its callback. There the kernel takes the trap and gdb's breakpoint is never seen,
so that an experiment stops beside these.
"""

from __future__ import annotations

from dataclasses import dataclass

import capstone
from capstone import x86

from qtrace.errors import ScanFailed
from qtrace.target.dataflow import Constant, Function, Returned, direct_target
from qtrace.target.maps import Module
from qtrace.target.scan import BottomHalf

# qemu_mutex_unlock_iothread() became bql_unlock() in 195801d700 (9.0).
UNLOCKS = ("bql_unlock", "qemu_mutex_unlock_iothread")
REMEDY = "try the QEMU of a distribution, or report the binary's build id: qtrace scan shows it"


def context_chosen(module: Module, half: BottomHalf) -> list[int]:
    """Link-time addresses at which rax is the context that a bottom half is about to go into.

    One for each of its call sites: the instruction after the call of the function that
    returns the context (qemu_get_aio_context() and its like). It is as rarely run as the call
    site itself.

    Raises:
        ScanFailed: the context does not come from a call, or not on one straight way.
    """
    return [_context_chosen(module, half.name, site.address) for site in half.sites]


def _context_chosen(module: Module, name: str, site: int) -> int:
    function = _function(module, site)
    context = function.states().get(site, {}).get("rdi") if function else None
    if function is not None and isinstance(context, Returned):
        entered = _jumped_to(function)
        addresses = sorted(a for a in function.instructions if a <= site)
        for before, address in zip(reversed(addresses[:-1]), reversed(addresses), strict=False):
            instruction = function.instructions[before]
            if instruction.group(x86.X86_GRP_CALL):
                if direct_target(instruction) == context.function and address != site:
                    return int(address)
                break
            if address in entered or instruction.group(x86.X86_GRP_JUMP):
                break
    raise ScanFailed(
        f"the code of {module.name} does not show where the context of {name} is chosen",
        REMEDY,
    )


def name_argument(module: Module, half: BottomHalf) -> int:
    """The link-time address of the name that a bottom half is scheduled with.

    Raises:
        ScanFailed: the code does not show it.
    """
    for site in half.sites:
        function = _function(module, site.address)
        name = function.states().get(site.address, {}).get("rcx") if function else None
        if isinstance(name, Constant):
            return name.value
    raise ScanFailed(f"the code of {module.name} does not show the name of {half.name}", REMEDY)


@dataclass(frozen=True, slots=True)
class Unlock:
    """Where the main loop drops the BQL to poll: link-time addresses of and after the call."""

    before: int
    after: int


def main_loop_unlock(module: Module) -> Unlock:
    """Where the main thread, and no other, is about to drop and has dropped the BQL.

    Raises:
        ScanFailed: there is none.
    """
    unlocks = {a for n in UNLOCKS if (a := module.symbols.address(n)) is not None}
    poll = module.symbols.address("qemu_poll_ns")
    loop = module.symbols.address("main_loop_wait")
    function = _function(module, loop) if loop is not None else None
    candidates = [function] if function is not None else []
    # os_host_main_loop_wait() is static, and inlined or not as the compiler likes.
    candidates += [
        callee
        for caller in candidates
        for target in _callees(caller)
        if (callee := _function(module, target)) is not None
    ]
    for candidate in candidates:
        calls = _callees(candidate)
        if poll in calls and not unlocks.isdisjoint(calls):
            for instruction in candidate.instructions.values():
                if instruction.id == x86.X86_INS_CALL and direct_target(instruction) in unlocks:
                    return Unlock(instruction.address, instruction.address + instruction.size)
    raise ScanFailed(
        f"the code of {module.name} does not show where the main loop drops the BQL", REMEDY
    )


@dataclass(frozen=True, slots=True)
class Entered:
    """The second instruction of a function, and how far the first has moved the stack.

    ``pushed`` is in bytes, None where the first does more than that.
    """

    address: int
    pushed: int | None


def just_entered(module: Module, callback: int) -> Entered:
    """The first place in a callback that has no uprobe.

    Raises:
        ScanFailed: it begins otherwise than compilers let functions begin.
    """
    function = _function(module, callback)
    if function is not None:
        first = function.instructions.get(callback)
        second = callback + (first.size if first is not None else 0)
        if (
            first is not None
            and function.successors(first) == [second]
            and not first.group(x86.X86_GRP_CALL)
            and second in function.instructions
            and second not in _jumped_to(function)
        ):
            pushed = {x86.X86_INS_PUSH: 8, x86.X86_INS_ENDBR64: 0}.get(first.id)
            return Entered(second, pushed)
    raise ScanFailed(
        f"the callback at {module.name}@{callback:#x} begins in an unusual way", REMEDY
    )


def drops_bql(module: Module) -> bool:
    """Whether saving the VM's state gives up the BQL, as it did until 930e239d11 (8.2).

    On a vCPU thread that ends in a failed assertion (QEMU issue 2111).
    """
    unlocks = {a for n in UNLOCKS if (a := module.symbols.address(n)) is not None}
    save = module.symbols.address("save_snapshot")
    function = _function(module, save) if save is not None else None
    return function is not None and not unlocks.isdisjoint(_callees(function))


def _function(module: Module, address: int) -> Function | None:
    extent = module.frames.function(address)
    return None if extent is None else Function(module.elf, *extent)


def _callees(function: Function) -> set[int]:
    calls = (i for i in function.instructions.values() if i.id == x86.X86_INS_CALL)
    return {target for call in calls if (target := direct_target(call)) is not None}


def _jumped_to(function: Function) -> set[int]:
    jumps: list[capstone.CsInsn] = [
        i for i in function.instructions.values() if i.group(x86.X86_GRP_JUMP)
    ]
    return {target for jump in jumps if (target := direct_target(jump)) is not None}
