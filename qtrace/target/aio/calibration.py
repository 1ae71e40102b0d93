"""The layout of a QEMU, read from the running binary's own code.

A version number tells nothing (stable branches backport layout changes), so each fact comes
from an instruction that uses it.
"""

from __future__ import annotations

from collections.abc import Callable

from qtrace.target.aio.instructions import Instruction, Place, Program
from qtrace.target.aio.layout import Layout

CALLEE_SAVED = ("rbx", "rbp", "r12", "r13", "r14", "r15")
# Longest way, in instructions, from a function's start to what is looked for in it.
FAR, NEAR = 220, 24


def calibrate(program: Program) -> Layout:
    """Read every fact that the program's code shows."""
    found: dict[str, int | str] = {}
    for part in _PARTS:
        found.update(part(program))
    return Layout(**found)  # type: ignore[arg-type]


def _function(program: Program, symbol: str, count: int) -> list[Instruction]:
    address = program.address(symbol)
    return [] if address is None else program.instructions(address, count)


def _main_contexts(program: Program) -> dict[str, int]:
    """qemu_get_aio_context() and iohandler_get_aio_context() load their variable first."""
    found = {}
    for fact, symbol in (
        ("main_variable", "qemu_get_aio_context"),
        ("iohandler_variable", "iohandler_get_aio_context"),
    ):
        for i in _function(program, symbol, 4):
            place = i.place(1)
            if i.mnemonic == "mov" and place and place.absolute:
                found[fact] = place.absolute
                break
    return found


def _bottom_halves(program: Program) -> dict[str, int]:
    """aio_bh_poll() moves bh_list into a slice by xchg, then takes one after the other."""
    code = _function(program, "aio_bh_poll", FAR)
    found: dict[str, int] = {}
    for i in code:
        place = i.place(0) or i.place(1)
        if place is None or not place.base:
            continue
        if i.mnemonic == "xchg" and place.base == "rdi" and "ctx_bh_list" not in found:
            found["ctx_bh_list"] = place.offset
        elif i.mnemonic == "cmpxchg" and place.base in CALLEE_SAVED:
            found.setdefault("bh_flags", place.offset)
    # The slices' head lies beside bh_list (include/block/aio.h); the code must read it there.
    if "ctx_bh_list" in found and any(_loads(i, found["ctx_bh_list"] + 8) for i in code):
        found["ctx_bh_slice_list"] = found["ctx_bh_list"] + 8
    if "bh_flags" in found:
        # `next` precedes the flags, and is cleared when the bottom half is taken off.
        found["bh_next"] = found["bh_flags"] - 8
        if not any(_loads(i, found["bh_next"]) for i in code):
            del found["bh_next"]
    return {**found, **_callback(program)}


def _callback(program: Program) -> dict[str, int]:
    """aio_bh_call(): ``bh->cb(bh->opaque)``, an indirect call right after loading rdi."""
    code = _function(program, "aio_bh_call", 60) or _function(program, "aio_bh_poll", FAR)
    opaque = None
    for i in code:
        source = i.place(1)
        if (
            i.mnemonic == "mov"
            and i.register(0) == "rdi"
            and source
            and source.base in CALLEE_SAVED
        ):
            opaque = source
        target = i.place(0)
        if i.is_call and target and opaque and target.base == opaque.base:
            return {"bh_cb": target.offset, "bh_opaque": opaque.offset}
    return {}


def _handlers(program: Program) -> dict[str, int]:
    """aio_set_fd_handler() takes list_lock, looks for the fd, and makes a new node."""
    code = _function(program, "aio_set_fd_handler", FAR)
    locked = program.address("qemu_lockcnt_lock")
    start = next((n + 1 for n, i in enumerate(code) if i.is_call and i.target == locked), None)
    if start is None or locked is None:
        return {}
    found: dict[str, int] = {}
    node = ""
    for i in code[start:]:
        source, target = i.place(1), i.place(0)
        if not node and i.mnemonic == "mov" and source and source.base in CALLEE_SAVED:
            found["ctx_aio_handlers"] = source.offset
            node = i.register(0)
        elif i.mnemonic == "mov" and source and source.base == node == i.register(0):
            found.setdefault("handler_next", source.offset)
        elif i.mnemonic == "cmp" and target and target.base == node and target.offset:
            found.setdefault("handler_deleted", target.offset)
    # The new node: g_malloc0()'s result, filled with io_read, io_write, ..., opaque.
    stores = _stores_to_new(code[start:])
    if len(stores) >= 4 and "handler_next" in found:
        found["handler_io_read"], found["handler_io_write"] = stores[:2]
        found["handler_opaque"] = stores[-1]
    return found


def _stores_to_new(code: list[Instruction]) -> list[int]:
    """Offsets of the registers that are stored, 8 bytes wide, into what a call returned."""
    names: set[str] = set()
    stores: list[int] = []
    for i in code:
        if i.is_call:
            if len(stores) >= 4:
                break
            names, stores = {"rax"}, []
            continue
        target, first = i.place(0), i.operands[0].register if i.operands else None
        if i.mnemonic == "mov" and target and target.base in names:
            value = i.operands[1].register
            if value and value.size == 8 and target.offset:
                stores.append(target.offset)
        elif i.mnemonic == "mov" and first and i.register(1) in names:
            names.add(first.name)
        elif first:
            names.discard(first.name)
    return sorted(stores)


def _scheduled(program: Program) -> dict[str, int]:
    """aio_co_schedule(ctx, co) pushes co on ctx->scheduled_coroutines by cmpxchg."""
    code = _function(program, "aio_co_schedule", 80)
    co = next((i.register(0) for i in code if i.mnemonic == "mov" and i.register(1) == "rsi"), "")
    lists: dict[str, int] = {}
    following = None
    for i in code:
        place = i.place(1)
        if i.mnemonic == "lea" and place and place.base in CALLEE_SAVED:
            lists[i.register(0)] = place.offset
        target = i.place(0)
        if i.mnemonic == "mov" and target and target.base == co and i.register(1):
            following = target.offset
        if i.mnemonic == "cmpxchg" and i.register(1) == co and target and following is not None:
            # The head is addressed through the lea, or directly.
            offset = lists.get(target.base) if not target.offset else target.offset
            if offset:
                return {"ctx_scheduled_coroutines": offset, "co_scheduled_next": following}
    return {}


def _coroutines(program: Program) -> dict[str, int]:
    """co->ctx from aio_co_wake(), ->caller from qemu_coroutine_entered(), ->env before setjmp."""
    found = {}
    for i in _function(program, "aio_co_wake", 6):
        place = i.place(1)
        if i.mnemonic == "mov" and place and place.base == "rdi":
            found["co_ctx"] = place.offset
            break
    for i in _function(program, "qemu_coroutine_entered", 3):
        place = i.place(0) if i.mnemonic == "cmp" else i.place(1)
        if place and place.base == "rdi":
            found["co_caller"] = place.offset
            break
    code = _function(program, "qemu_coroutine_switch", 30)
    for n, i in enumerate(code[:-1]):
        place = i.place(1)
        if i.mnemonic == "lea" and i.register(0) == "rdi" and place and code[n + 1].is_call:
            found["co_env"] = place.offset
            break
    return found


def _thread_local(program: Program) -> dict[str, int]:
    """Both variables have getters of their own (QEMU_DEFINE_STATIC_CO_TLS)."""
    found = {}
    for fact, symbol in (
        ("context_tls", "qemu_get_current_aio_context"),
        ("coroutine_tls", "qemu_coroutine_self"),
    ):
        offset = _thread_local_of(program, _function(program, symbol, 8))
        if offset is not None:
            found[fact] = offset
    return found


def _thread_local_of(program: Program, code: list[Instruction]) -> int | None:
    """The first variable that the code, or the first function it calls, loads from fs."""
    for i in code:
        if i.is_call and i.target:
            code = program.instructions(i.target, 4)
            break
    for i in code:
        place = i.place(1)
        # fs:0 and above is glibc's own (the canary at fs:0x28).
        if i.mnemonic == "mov" and place and place.segment == "fs" and place.offset < 0:
            return place.offset
    return None


def _jobs(program: Program) -> dict[str, int]:
    """job_next_locked(job), job_start() and the small getters."""
    found: dict[str, int] = {}
    code = _function(program, "job_next_locked", NEAR) or _function(program, "job_next", NEAR)
    for i in code:
        place = i.place(1)
        if i.mnemonic == "mov" and i.register(0) == "rax" and place:
            if place.absolute:
                found.setdefault("jobs", place.absolute)
            elif place.base == "rdi":
                found.setdefault("job_next", place.offset)
        if len(found) == 2:
            break
    for i in _function(program, "job_start", NEAR):
        place = i.place(0)
        if i.mnemonic == "cmp" and place and place.base in CALLEE_SAVED:
            found["job_co"] = place.offset
            break
    loads = [i.place(1) for i in _function(program, "job_type", 3) if i.mnemonic == "mov"]
    if len(loads) >= 2 and loads[0] and loads[1]:
        found["job_driver"], found["driver_type"] = loads[0].offset, loads[1].offset
    for i in _function(program, "job_is_completed_locked", 3):
        place = i.place(1)
        if i.mnemonic == "mov" and place and place.base == "rdi":
            found["job_status"] = place.offset
            break
    return found


def _big_lock(program: Program) -> dict[str, int]:
    """The address that bql_lock_impl() hands to the function that locks."""
    found: dict[str, int] = {}
    code = _function(program, "bql_lock_impl", 40)
    code = code or _function(program, "qemu_mutex_lock_iothread_impl", 40)
    mutex = None
    for i in code:
        place = i.place(1)
        if i.mnemonic == "lea" and i.register(0) == "rdi" and place and place.absolute:
            mutex = place.absolute
        elif i.is_call:
            if mutex and not i.target:
                found["bql"] = mutex
                break
            mutex = None
    return found


def _poll_register(program: Program) -> dict[str, str]:
    """The callee-saved register that keeps the first argument, ctx, in aio_poll()'s frames.

    It must not be written again, or the frame would show something else.
    """
    code = _function(program, "aio_poll", 60)
    for n, i in enumerate(code):
        register = i.register(0)
        if i.mnemonic == "mov" and i.register(1) == "rdi" and register in CALLEE_SAVED:
            again = any(_writes(later, register) for later in code[n + 1 :])
            return {} if again else {"poll_register": register}
    return {}


def _writes(instruction: Instruction, register: str) -> bool:
    return (
        instruction.mnemonic in ("mov", "lea", "xor", "add", "sub", "and", "or")
        and instruction.register(0) == register
    )


def _loads(instruction: Instruction, offset: int) -> bool:
    place: Place | None = instruction.place(1)
    return instruction.mnemonic == "mov" and place is not None and place.offset == offset


_PARTS: tuple[Callable[[Program], dict[str, int] | dict[str, str]], ...] = (
    _main_contexts, _bottom_halves, _handlers, _scheduled, _coroutines, _thread_local, _jobs,
    _big_lock, _poll_register,
)  # fmt: skip
