"""The layout of a QEMU, read from the running binary's own code.

A version number tells nothing (stable branches backport layout changes), so each fact comes
from an instruction that uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from qtrace.machine.architecture import Architecture
from qtrace.qemu.aio.flow import (
    STACK,
    THREAD,
    WORD,
    Argument,
    Loaded,
    Returned,
    Root,
    Step,
    Value,
    argument,
    compared,
    follow,
    follow_from,
    loaded,
    steps_on,
)
from qtrace.qemu.aio.instructions import Disassembly, Instruction
from qtrace.qemu.aio.layout import Layout

# The first argument of what takes an AioContext.
CONTEXT = Argument(0)
# Longest way, in instructions, from a function's start to what is looked for in it.
FAR, NEAR, NEXT = 220, 24, 8
# RCU_GP_CTR of util/rcu.c.
GRACE = 2
# What changes a word that others change, too, by whichever operation.
ATOMIC = ("cmpxchg", "atomic")


def calibrate(program: Disassembly) -> Layout:
    """Read every fact that the program's code shows."""
    found: dict[str, int | str] = {}
    for part in _PARTS:
        found.update(part(program))
    return Layout(**found)  # type: ignore[arg-type]


def _function(program: Disassembly, symbol: str, count: int) -> list[Instruction]:
    address = program.address(symbol)
    return [] if address is None else program.instructions(address, count)


def _main_contexts(program: Disassembly) -> dict[str, int]:
    """qemu_get_aio_context() and iohandler_get_aio_context() load their variable first."""
    found = {}
    for fact, symbol in (
        ("main_variable", "qemu_get_aio_context"),
        ("iohandler_variable", "iohandler_get_aio_context"),
    ):
        for step in follow(program, symbol, NEXT):
            place = _source(step)
            if place is not None and place.root is None:
                found[fact] = place.offset
                break
    return found


def bottom_halves(program: Disassembly) -> dict[str, int]:
    """Of a context's list of them, and of QEMUBH: by the names of ``Layout``.

    aio_bh_poll() moves bh_list into a slice by xchg, then takes one after the other.
    """
    steps = follow(program, "aio_bh_poll", FAR)
    found: dict[str, int] = {}
    for step in steps:
        place = step.address(0) or step.address(1)
        if place is None:
            continue
        if step.instruction.mnemonic == "xchg" and place.root == CONTEXT:
            found.setdefault("ctx_bh_list", place.offset)
        elif step.instruction.mnemonic in ATOMIC and isinstance(place.root, Loaded):
            found.setdefault("bh_flags", place.offset)
    # The slices' head lies beside bh_list (include/block/aio.h); the code must read it there.
    if "ctx_bh_list" in found and any(_loads(step, found["ctx_bh_list"] + 8) for step in steps):
        found["ctx_bh_slice_list"] = found["ctx_bh_list"] + 8
    if "bh_flags" in found:
        # `next` precedes the flags, and is cleared when the bottom half is taken off.
        found["bh_next"] = found["bh_flags"] - 8
        if not any(_loads(step, found["bh_next"]) for step in steps):
            del found["bh_next"]
    return {**found, **_callback(program)}


def _callback(program: Disassembly) -> dict[str, int]:
    """aio_bh_call(): ``bh->cb(bh->opaque)``, both loaded from one and the same structure."""
    for step in follow(program, "aio_bh_call", 60) or follow(program, "aio_bh_poll", FAR):
        callee = step.value(0) if _is_indirect_call(step) else None
        given = step.registers.get(program.architecture.argument_names[0])
        cb = None if callee is None else callee.loaded_from
        opaque = None if given is None else given.loaded_from
        if cb is not None and opaque is not None and cb.root is not None and cb.root == opaque.root:
            return {"bh_cb": cb.offset, "bh_opaque": opaque.offset}
    return {}


def _is_indirect_call(step: Step) -> bool:
    """Also a jump that takes a call's place at the function's end."""
    calls = step.instruction.is_call or step.instruction.mnemonic == "jmp"
    return calls and not step.instruction.target


def _handlers(program: Disassembly) -> dict[str, int]:
    """aio_set_fd_handler(ctx, fd, ...) looks for the fd's node, and makes a new one."""
    steps = follow(program, "aio_set_fd_handler", FAR)
    found: dict[str, int] = {}
    node = None
    for step in steps:
        place = compared(step)
        if place is not None and node is None:
            # The first member is the fd; the first node comes from the list's head.
            head = place.loaded_from
            if head is not None and head.root == CONTEXT and head.offset:
                node = place
                found["ctx_aio_handlers"] = head.offset
        elif place is not None and node is not None and place.root == node.root and place.offset:
            found.setdefault("handler_deleted", place.offset)
        elif node is not None and steps_on(step):
            following = _source(step)
            if following is not None and following.root == node.root:
                found.setdefault("handler_next", following.offset)
    return found | _new_handler(steps, program.architecture)


def _new_handler(steps: Iterable[Step], machine: Architecture) -> dict[str, int]:
    """The new node is what g_malloc0() returned, filled with io_read, io_write, ..., opaque:
    arguments that follow one another, the last of all."""
    nodes: dict[Root, dict[int, int]] = {}
    for step in steps:
        place, value = step.address(0), step.value(1)
        if step.instruction.mnemonic != "mov" or place is None or value is None:
            continue
        position = _position(value, machine)
        if position is not None and isinstance(place.root, Returned):
            nodes.setdefault(place.root, {})[place.offset] = position
    for stored in nodes.values():
        offsets = sorted(stored)
        last = max(offsets, key=lambda offset: stored[offset])
        # ctx, fd, io_read, io_write, io_poll, io_poll_ready, opaque: at least.
        if len(offsets) < 3 or stored[last] < 6:
            continue
        read, write = offsets[:2]
        if write == read + WORD and stored[write] == stored[read] + 1:
            return {"handler_io_read": read, "handler_io_write": write, "handler_opaque": last}
    return {}


def _position(value: Value, machine: Architecture) -> int | None:
    """Which argument a value is, from 0 on; None when it is none."""
    if isinstance(value.root, Argument) and not value.offset:
        return value.root.number
    place = value.loaded_from
    # The return address comes first, where a call pushes it.
    first = WORD if machine.pushes_return_address else 0
    if place is None or place.root != STACK or place.offset < first:
        return None
    return len(machine.argument_names) + (place.offset - first) // WORD


def _scheduled(program: Disassembly) -> dict[str, int]:
    """aio_co_schedule(ctx, co) pushes co on ctx->scheduled_coroutines by cmpxchg."""
    following: dict[Value, int] = {}
    for step in follow(program, "aio_co_schedule", 80):
        place, value = step.address(0), step.value(1)
        if place is None or value is None:
            continue
        head = value.loaded_from
        if step.instruction.mnemonic == "mov" and place.root == Argument(1) and head is not None:
            following[head] = place.offset
        if step.instruction.mnemonic == "cmpxchg" and value == argument(1) and place in following:
            return {
                "ctx_scheduled_coroutines": place.offset, "co_scheduled_next": following[place],
            }  # fmt: skip
    return {}


def _coroutines(program: Disassembly) -> dict[str, int]:
    """co->ctx from aio_co_wake(), ->caller from qemu_coroutine_entered(), ->env before setjmp."""
    found = {}
    for fact, symbol in (("co_ctx", "aio_co_wake"), ("co_caller", "qemu_coroutine_entered")):
        for step in follow(program, symbol, NEXT):
            place = _source(step) or compared(step)
            if place is not None and place.root == Argument(0):
                found[fact] = place.offset
                break
    for step in follow(program, "qemu_coroutine_switch", 40):
        # sigsetjmp(co->env), in the C library.
        buffer = step.registers.get(program.architecture.argument_names[0])
        if step.instruction.is_call and buffer and buffer.root is not None and buffer.offset:
            found["co_env"] = buffer.offset
            break
    return found


def _thread_local(program: Disassembly) -> dict[str, int]:
    """Both variables have getters of their own (QEMU_DEFINE_STATIC_CO_TLS)."""
    found = {}
    for fact, symbol in (
        ("context_tls", "qemu_get_current_aio_context"),
        ("coroutine_tls", "qemu_coroutine_self"),
    ):
        offset, member = _thread_local_of(program, follow(program, symbol, NEXT))
        if offset is not None:
            found[fact] = offset
            if member and fact == "context_tls":
                found["iothread_ctx"] = member
    return found


def _thread_local_of(program: Disassembly, steps: list[Step]) -> tuple[int | None, int]:
    """The first thread-local variable that the code, or the first function it calls, loads; and
    the member that is loaded of what it points to, 0 for none."""
    for step in steps:
        if step.instruction.is_call and step.instruction.target:
            steps = follow_from(program, step.instruction.target, NEXT)
            break
    for n, step in enumerate(steps):
        place = _source(step)
        # The canary is glibc's own, for one.
        if place is None or place.root != THREAD:
            continue
        if not 0 <= place.offset < program.architecture.thread_header:
            loads = [_source(later) for later in steps[n + 1 :]]
            members = [p.offset for p in loads if p is not None and p.root == Loaded(place)]
            return place.offset, members[0] if members else 0
    return None, 0


def _jobs(program: Disassembly) -> dict[str, int]:
    """job_next_locked(job), job_start() and the small getters."""
    found: dict[str, int] = {}
    steps = follow(program, "job_next_locked", NEAR) or follow(program, "job_next", NEAR)
    for step in steps:
        place = _source(step)
        if place is not None and place.root is None:
            found.setdefault("jobs", place.offset)
        elif place is not None and place.root == Argument(0):
            found.setdefault("job_next", place.offset)
    for step in follow(program, "job_start", NEAR):
        member = compared(step)
        if member is not None and member.root == Argument(0):
            found["job_co"] = member.offset
            break
    loads = [place for step in follow(program, "job_type", NEXT) if (place := _source(step))]
    if len(loads) >= 2 and loads[0].root == Argument(0) and loads[1].root == Loaded(loads[0]):
        found["job_driver"], found["driver_type"] = loads[0].offset, loads[1].offset
    steps = follow(program, "job_is_completed_locked", NEXT)
    for step in steps or follow(program, "job_is_completed", NEXT):
        place = _source(step)
        if place is not None and place.root == Argument(0):
            found["job_status"] = place.offset
            break
    return found


def _big_lock(program: Disassembly) -> dict[str, int]:
    """The address that bql_lock_impl() hands to the function that locks.

    That is a variable (the profiler's), called or jumped to. It stays in a register over a call
    that the compiler knows not to use it, so that where it comes from does not show.
    """
    steps = follow(program, "bql_lock_impl", 40)
    steps = steps or follow(program, "qemu_mutex_lock_iothread_impl", 40)
    mnemonics = [step.instruction.mnemonic for step in steps]
    if mnemonics[-1:] == ["ret"] and set(mnemonics[:-1]) <= {"endbr64", "nop"}:
        # The stub of programs that have no such lock (stubs/iothread-lock.c).
        return {"bql": 0}
    for step in steps:
        mutex = step.registers.get(program.architecture.argument_names[0])
        if _is_indirect_call(step) and mutex is not None and mutex.root is None:
            return {"bql": mutex.offset}
    return {}


def _longest_poll(program: Disassembly) -> dict[str, int]:
    """aio_context_set_poll_params(ctx, max_ns, ...) stores its second argument in the context."""
    for step in follow(program, "aio_context_set_poll_params", 60):
        place = step.address(0)
        if step.instruction.mnemonic != "mov" or place is None or place.root != CONTEXT:
            continue
        if step.value(1) == argument(1):
            return {"ctx_poll_max_ns": place.offset}
    return {}


def _rcu(program: Disassembly) -> dict[str, int]:
    """get_ptr_rcu_reader() returns the thread's own (QEMU_DEFINE_CO_TLS), which begins with its
    ``ctr``; before 7.0 it had none, and rcu_register_thread() asks
    whether that is 0.
    synchronize_rcu() adds RCU_GP_CTR to rcu_gp_ctr."""
    found = {}
    for step in follow(program, "get_ptr_rcu_reader", NEXT):
        reader = step.registers.get(program.architecture.result_name)
        # On x86-64 the thread pointer is kept where it points to.
        if step.instruction.mnemonic == "ret" and reader is not None:
            if reader.root in (THREAD, Loaded(Value(THREAD))):
                found["rcu_reader_tls"] = reader.offset
            break
    for step in follow(program, "rcu_register_thread", NEXT):
        place = compared(step)
        if place is not None and place.root == THREAD:
            found.setdefault("rcu_reader_tls", place.offset)
    for step in follow(program, "synchronize_rcu", FAR):
        for at, other in ((0, 1), (1, 0)):
            place = step.address(at)
            if place and place.root is None and step.value(other) == loaded(place).plus(GRACE):
                found.setdefault("rcu_gp_ctr", place.offset)
    return found


def _poll_register(program: Disassembly) -> dict[str, str]:
    """The callee-saved register that keeps the first argument, ctx, in aio_poll()'s frames.

    It must not be written again, or the frame would show something else.
    """
    code = _function(program, "aio_poll", 60)
    machine = program.architecture
    for n, i in enumerate(code):
        register = i.register(0)
        copies = i.mnemonic == "mov" and i.register(1) == machine.argument_names[0]
        if copies and register in machine.callee_saved_names:
            again = any(_writes(later, register) for later in code[n + 1 :])
            return {} if again else {"poll_register": register}
    return {}


def _writes(instruction: Instruction, register: str) -> bool:
    return (
        instruction.mnemonic in ("mov", "lea", "xor", "add", "sub", "and", "or", "other")
        and instruction.register(0) == register
    )


def _source(step: Step) -> Value | None:
    """The address that an instruction loads a register from."""
    return step.address(1) if step.instruction.mnemonic == "mov" else None


def _loads(step: Step, offset: int) -> bool:
    source = _source(step)
    return source is not None and source.root is not None and source.offset == offset


_PARTS: tuple[Callable[[Disassembly], dict[str, int] | dict[str, str]], ...] = (
    _main_contexts, bottom_halves, _handlers, _scheduled, _coroutines, _thread_local, _jobs,
    _big_lock, _longest_poll, _poll_register, _rcu,
)  # fmt: skip
