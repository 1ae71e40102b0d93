"""Every one-shot bottom half of a QEMU binary, found in its code without running it.

``snapshot_save_job_bh`` and its like are static functions of a stripped binary, yet all
that is needed follows from the code that schedules them: the callback's name and address, and
the context.
"""

from __future__ import annotations

import re

from qtrace.binary.cfi import CallFrames
from qtrace.binary.dataflow import Function, arguments
from qtrace.binary.elf import Elf
from qtrace.binary.exits import find_exits
from qtrace.binary.module import Module
from qtrace.binary.symbols import SymbolTable
from qtrace.binary.values import Constant, Loaded, Returned, Value
from qtrace.errors import ScanFailed
from qtrace.sites.qmp_sites import DISPATCH_BH, find_qmp_sites
from qtrace.sites.scan import BottomHalf, CallSite, Scan
from qtrace.sites.scheduler import SCHEDULERS
from qtrace.sites.schedules import Schedule, calls_to, find_schedules

GETTERS = {"qemu_get_aio_context": "main", "iohandler_get_aio_context": "iohandler"}
CREATE_THREAD = "qemu_thread_create"
# The function that a thread begins with, by the name that qemu_thread_create() is given for it.
# They are static: without debug info nothing else names them.
THREADS = {
    "worker": "worker_thread",
    "call_rcu": "call_rcu_thread",
    "live_migration": "migration_thread",
    "mig/src/main": "migration_thread",
}
IDENTIFIER = re.compile(r"[A-Za-z_]\w*\Z")


def scan_binary(module: Module, version: str) -> Scan:
    """Disassemble around everything that schedules a bottom half.

    Raises:
        NotQemu: the binary has no function for it.
        ScanFailed: it has one, but no schedule could be read.
    """
    elf, symbols, frames = module.elf, module.symbols, module.frames
    schedules = find_schedules(module)
    getters = {a: c for n, c in GETTERS.items() if (a := symbols.address(n)) is not None}
    chosen = {} if getters else _contexts_by_names(elf, symbols, schedules.found)
    getters |= {v.function: c for v, c in chosen.items() if isinstance(v, Returned)}
    variables = {
        context: variable
        for address, context in getters.items()
        if (variable := _loaded_first(elf, frames, address)) is not None
    }
    variables |= {c: v.address for v, c in chosen.items() if isinstance(v, Loaded)}
    targets = {one.address: _callback(elf, one) for one in schedules.found}
    # A name that does not show at one schedule may show at another of the same callback.
    names = {targets[s.address]: s.name for s in schedules.found if isinstance(s.name, Constant)}
    found: dict[tuple[str, int], list[CallSite]] = {}
    for schedule in schedules.found:
        target = targets[schedule.address]
        given = schedule.name or (names.get(target) if target else None)
        name = _name(elf, symbols, given, target)
        context = _context(schedule.context, symbols, getters, variables)
        code = schedule.function.instructions[schedule.address].bytes.hex()
        site = CallSite(schedule.address, code, context, schedule.callee, schedule.fields)
        found.setdefault((name, target), []).append(site)
    if not found:
        raise ScanFailed(
            f"no call to {SCHEDULERS[0]}() can be read in {elf.name}",
            "install the debug symbols of this QEMU, or report the binary's build id "
            f"{elf.build_id or '(none)'}",
        )
    halves = tuple(
        BottomHalf(
            name,
            callback,
            elf.read(callback, 16).hex() if callback else "",
            tuple(sites),
            find_exits(elf, frames, callback) if callback else (),
        )
        for (name, callback), sites in sorted(found.items())
    )
    dispatch_bh = next((half.callback for half in halves if half.name == DISPATCH_BH), 0)
    qmp = find_qmp_sites(elf, symbols, frames, dispatch_bh)
    return Scan(
        elf.build_id, elf.code_hash, version, schedules.scheduler, schedules.found_by, halves,
        variables, qmp, _threads(elf, symbols, frames),
    )  # fmt: skip


def _callback(elf: Elf, schedule: Schedule) -> int:
    """The function that a schedule names, 0 where it is a variable."""
    callback = schedule.callback
    target = callback.value if isinstance(callback, Constant) else 0
    return target if elf.is_code(target) else 0


def _threads(elf: Elf, symbols: SymbolTable, frames: CallFrames) -> dict[str, int]:
    """The functions that threads of known names begin with; and the IOThreads', whose names are
    made at run time: theirs is the only such function that polls.
    """
    found: dict[str, int] = {}
    create, poll = symbols.address(CREATE_THREAD), symbols.address("aio_poll")
    for _address, _function, state in calls_to(elf, frames, () if create is None else (create,)):
        _thread, name, start, *_more = arguments(elf, state)
        if not isinstance(start, Constant) or not elf.is_code(start.value):
            continue
        if isinstance(name, Constant):
            function = THREADS.get(elf.c_string(name.value) or "")
        else:
            function = "iothread_run" if _calls_directly(elf, frames, start.value, poll) else None
        if function:
            found.setdefault(function, start.value)
    return found


def _calls_directly(elf: Elf, frames: CallFrames, function: int, callee: int | None) -> bool:
    extent = frames.function(function)
    if extent is None or callee is None:
        return False
    return callee in Function(elf, *extent).calls().values()


def _contexts_by_names(
    elf: Elf, symbols: SymbolTable, schedules: list[Schedule]
) -> dict[Value, str]:  # fmt: skip
    """What the code takes the two contexts from, a getter or a variable, told by who goes there.

    job_exit() goes into the main context in every QEMU that has jobs; do_qmp_dispatch_bh()
    into the iohandler context since effd60c878 (9.0), before that into main.
    """
    found: dict[Value, str] = {}
    for bottom_half, context in (("job_exit", "main"), ("do_qmp_dispatch_bh", "iohandler")):
        for schedule in schedules:
            named = _name(elf, symbols, schedule.name, 0)
            if isinstance(schedule.context, Returned | Loaded) and named == bottom_half:
                found.setdefault(schedule.context, context)
    return found


def _name(elf: Elf, symbols: SymbolTable, name: Value | None, callback: int) -> str:
    """The bottom half's name: what it is given, else the callback's symbol, else its address.

    QEMU stringifies the callback's expression: a name that is no identifier, or that is a
    variable's ("cb"), is no function's. Before 6.1 none is given.
    """
    text = elf.c_string(name.value) if isinstance(name, Constant) else None
    if text and (IDENTIFIER.match(text) or not callback):
        return text
    symbol = symbols.lookup(callback) if callback else None
    if symbol and symbol[1] == 0:
        return symbol[0]
    return text or (f"bh@{callback:#x}" if callback else "?")


def _context(
    context: Value | None,
    symbols: SymbolTable,
    getters: dict[int, str],
    variables: dict[str, int],
) -> str:
    if isinstance(context, Returned):
        if context.function in getters:
            return getters[context.function]
        symbol = symbols.lookup(context.function)
        return f"{symbol[0]}()" if symbol else ""
    if isinstance(context, Loaded):
        # The getter inlined (link-time optimisation).
        return next((n for n, v in variables.items() if v == context.address), "")
    return ""


def _loaded_first(elf: Elf, frames: CallFrames, function: int) -> int | None:
    """The static variable that a getter loads first, to return it."""
    extent = frames.function(function) or (function, function + 32)
    for _address, state in sorted(Function(elf, *extent).states().items()):
        if isinstance(value := state.get(elf.architecture.result_name), Loaded):
            return value.address
    return None
