"""Where an experiment can take hold of QEMU: found in the code, free of any uprobe.

A recording by eBPF has its uprobes on the calls that schedule a bottom half and on the first
instruction of its callback. There the kernel takes the trap and gdb's breakpoint is never seen,
so that an experiment stops beside these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import capstone
from capstone import x86

from qtrace.binary.code_x86_64 import direct_target
from qtrace.binary.dataflow import Function
from qtrace.binary.emulated import past_guard
from qtrace.binary.module import Module
from qtrace.binary.values import Constant, Fresh, Returned
from qtrace.errors import ScanFailed
from qtrace.sites.inlined import FreshMemory, stored
from qtrace.sites.scan import BottomHalf, CallSite
from qtrace.sites.schedules import find_schedules

# qemu_mutex_unlock_iothread() became bql_unlock() in 195801d700 (9.0).
UNLOCKS = ("bql_unlock", "qemu_mutex_unlock_iothread")
REMEDY = "try the QEMU of a distribution, or report the binary's build id: qtrace scan shows it"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A place shortly before a bottom half is scheduled: what holds the context that it goes into.

    ``address`` is a link-time address, ``register`` as debuggers spell it. The context is in that
    register, or with ``offset`` so far into the QEMUBH that the register points to.
    """

    address: int
    register: str
    offset: int | None = None

    def at(self, bias: int) -> dict[str, Any]:
        """For the script inside gdb, at its run-time address."""
        return {**asdict(self), "address": self.address + bias}


def context_chosen(module: Module, half: BottomHalf) -> list[Chosen]:
    """Where the context that a bottom half is about to go into can be seen and changed.

    One for each of its call sites, as rarely run as these. Where a function is called: the
    instruction after the call of the function that returns the context (qemu_get_aio_context()
    and its like). Where that is inlined: shortly before the enqueue, the context stored already.

    Raises:
        ScanFailed: the context does not come from a call, or not on one straight way.
    """
    return [
        _context_stored(module, half.name, site) if site.fields
        else _context_returned(module, half.name, site)
        for site in half.sites
    ]  # fmt: skip


def _context_returned(module: Module, name: str, site: CallSite) -> Chosen:
    function = _function(module, site.address)
    context = function.states().get(site.address, {}).get("rdi") if function else None
    if function is not None and isinstance(context, Returned):
        for before, address in _straight_way(function, site.address):
            instruction = function.instructions[before]
            if instruction.group(x86.X86_GRP_CALL):
                if direct_target(instruction) == context.function and address != site.address:
                    return Chosen(address, "rax")
                break
    raise _no_context(module, name)


def _context_stored(module: Module, name: str, site: CallSite) -> Chosen:
    function = _function(module, site.address)
    if function is not None:
        states = function.states(FreshMemory())
        fresh = states[site.address].get("rdi")
        for address, _next in _straight_way(function, site.address):
            state = states[address]
            holders = [r for r, v in state.items() if v == fresh]
            if isinstance(fresh, Fresh) and holders and stored(state, fresh, site.fields[0]):
                return Chosen(address, holders[0], site.fields[0])
    raise _no_context(module, name)


def _straight_way(function: Function, site: int) -> Iterator[tuple[int, int]]:
    """Backwards from a site: each instruction from which control can but come to it, none
    entering from elsewhere in between; with the one after it."""
    entered = _jumped_to(function)
    addresses = sorted((a for a in function.instructions if a <= site), reverse=True)
    for address, before in pairwise(addresses):
        if address in entered or function.instructions[before].group(x86.X86_GRP_JUMP):
            return
        yield before, address


def _no_context(module: Module, name: str) -> ScanFailed:
    return ScanFailed(
        f"the code of {module.name} does not show where the context of {name} is chosen", REMEDY
    )


def name_argument(module: Module, half: BottomHalf) -> int:
    """The link-time address of the name that a bottom half is scheduled with.

    Raises:
        ScanFailed: the code does not show it.
    """
    sites = {site.address for site in half.sites}
    for schedule in find_schedules(module).found:
        if schedule.address in sites and isinstance(schedule.name, Constant):
            return schedule.name.value
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
    poll = module.symbols.address("qemu_poll_ns")
    loop = module.symbols.address("main_loop_wait")
    function = _function(module, loop) if loop is not None else None
    candidates = [function] if function is not None else []
    # os_host_main_loop_wait() is static, and inlined or not as the compiler likes.
    candidates += [
        callee
        for caller in candidates
        for target in dict.fromkeys(caller.calls().values())
        if (callee := _function(module, target)) is not None
    ]
    for candidate in candidates:
        if poll in candidate.calls().values():
            for instruction in _bql_unlocks(module, candidate):
                return Unlock(instruction.address, instruction.address + instruction.size)
    raise ScanFailed(
        f"the code of {module.name} does not show where the main loop drops the BQL", REMEDY
    )


@dataclass(frozen=True, slots=True)
class Entered:
    """The second instruction of a function, an endbr64 not counted, and how far the first has moved
    the stack.

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
        begin = past_guard(module.elf, callback)
        first = function.instructions.get(begin)
        second = begin + (first.size if first is not None else 0)
        if (
            first is not None
            and function.successors(first) == [second]
            and not first.group(x86.X86_GRP_CALL)
            and second in function.instructions
            and second not in _jumped_to(function)
        ):
            return Entered(second, 8 if first.id == x86.X86_INS_PUSH else None)
    raise ScanFailed(
        f"the callback at {module.name}@{callback:#x} begins in an unusual way", REMEDY
    )


def drops_bql(module: Module) -> bool:
    """Whether saving the VM's state gives up the BQL, as it did until 930e239d11 (8.2).

    On a vCPU thread that ends in a failed assertion (QEMU issue 2111).
    """
    save = module.symbols.address("save_snapshot")
    function = _function(module, save) if save is not None else None
    return function is not None and bool(_bql_unlocks(module, function))


def _bql_unlocks(module: Module, function: Function) -> list[capstone.CsInsn]:
    """The calls that drop the BQL: of its own function or, that inlined, of mutexes."""
    own = {a for n in UNLOCKS if (a := module.symbols.address(n)) is not None}
    mutex = module.symbols.address("qemu_mutex_unlock_impl")
    locks = {
        state.get("rdi")
        for address in own
        if (body := _function(module, address)) is not None
        for at, state in body.states().items()
        if body.callee(at) == mutex
    }
    locks = {lock for lock in locks if isinstance(lock, Constant)}
    states = function.states()
    return [
        instruction
        for at, instruction in function.instructions.items()
        if instruction.id == x86.X86_INS_CALL
        and (
            direct_target(instruction) in own
            or (direct_target(instruction) == mutex and states.get(at, {}).get("rdi") in locks)
        )
    ]


def _function(module: Module, address: int) -> Function | None:
    extent = module.frames.function(address)
    return None if extent is None else Function(module.elf, *extent)


def _jumped_to(function: Function) -> set[int]:
    jumps: list[capstone.CsInsn] = [
        i for i in function.instructions.values() if i.group(x86.X86_GRP_JUMP)
    ]
    return {target for jump in jumps if (target := direct_target(jump)) is not None}
