"""Every one-shot bottom half of a QEMU binary, found in its code without running it.

``snapshot_save_job_bh`` and its like are static functions of a stripped binary, yet all
that is needed follows from the calls to aio_bh_schedule_oneshot_full(ctx, cb, opaque, name):
the fourth argument is the callback's name, the second its address, the first tells the
context.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from qtrace.errors import ScanFailed
from qtrace.target.cfi import CallFrames
from qtrace.target.dataflow import (
    Constant,
    Function,
    Loaded,
    Returned,
    State,
    references_to,
)
from qtrace.target.elf import Elf
from qtrace.target.exits import find_exits
from qtrace.target.qmp_sites import DISPATCH_BH, QmpSite, find_qmp_sites
from qtrace.target.scheduler import SCHEDULERS, find_scheduler
from qtrace.target.symbols import SymbolTable

GETTERS = {"qemu_get_aio_context": "main", "iohandler_get_aio_context": "iohandler"}
CREATE_THREAD = "qemu_thread_create"
# The function that a thread begins with, by the name that qemu_thread_create() is given for it.
# They are static: without debug info nothing else names them.
THREADS = {
    "worker": "worker_thread",
    "live_migration": "migration_thread",
    "mig/src/main": "migration_thread",
}
IDENTIFIER = re.compile(r"[A-Za-z_]\w*\Z")


@dataclass(frozen=True, slots=True)
class CallSite:
    """One place that schedules: its link-time address, the context where the code shows it.

    ``context`` is ``main``, ``iohandler``, a function whose result is used (``f()``), or
    empty; ``code`` are the instruction's bytes in hex.
    """

    address: int
    code: str
    context: str


@dataclass(frozen=True, slots=True)
class BottomHalf:
    """A one-shot bottom half: link-time address of its callback, and who schedules it.

    ``callback`` is 0 where the code passes a variable (then ``name`` is an expression).
    ``exits`` are the instructions at which it returns, empty where not all are known.
    """

    name: str
    callback: int
    code: str
    sites: tuple[CallSite, ...]
    exits: tuple[int, ...]

    @property
    def watchable(self) -> bool:
        return self.callback != 0


@dataclass(frozen=True, slots=True)
class Scan:
    """What the code of one binary tells.

    Attributes:
        scheduler: link-time address of aio_bh_schedule_oneshot_full().
        found_by: ``symbol``, or ``names`` where the binary has no symbol for it.
        context_variables: link-time addresses of the static pointers to the main loop's
            contexts, by context name.
        qmp: where it takes, carries out and answers QMP commands, and tells of jobs.
        threads: link-time addresses of functions that threads begin with, by their names.
    """

    build_id: str
    code_hash: str
    version: str
    scheduler: int
    found_by: str
    bottom_halves: tuple[BottomHalf, ...]
    context_variables: dict[str, int]
    qmp: tuple[QmpSite, ...]
    threads: dict[str, int]

    @property
    def static_names(self) -> dict[int, str]:
        """The functions that it names although they have no symbol, by link-time address."""
        halves = {half.callback: half.name for half in self.bottom_halves if half.callback}
        return halves | {address: name for name, address in self.threads.items()}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scan:
        """Raises KeyError or TypeError when the data is not a scan of this version."""
        halves = tuple(
            BottomHalf(
                **{
                    **half,
                    "sites": tuple(CallSite(**site) for site in half["sites"]),
                    "exits": tuple(half["exits"]),
                }
            )
            for half in data["bottom_halves"]
        )
        qmp = tuple(QmpSite(**site) for site in data["qmp"])
        return cls(**{**data, "bottom_halves": halves, "qmp": qmp})


def scan_binary(elf: Elf, symbols: SymbolTable, frames: CallFrames, version: str) -> Scan:
    """Disassemble around every call to the scheduling function.

    Raises:
        NotQemu: the binary has no such function.
        ScanFailed: it has one, but no call to it could be read.
    """
    scheduler, found_by = find_scheduler(elf, symbols, frames)
    create = symbols.address(CREATE_THREAD)
    every = _calls(elf, frames, {scheduler, *([] if create is None else [create])})
    calls = [call for call in every if call[1].callee(call[0]) == scheduler]
    created = [state for at, function, state in every if function.callee(at) == create]
    getters = {a: c for n, c in GETTERS.items() if (a := symbols.address(n)) is not None}
    getters = getters or _getters_by_names(elf, symbols, calls)
    variables = {
        context: variable
        for address, context in getters.items()
        if (variable := _loaded_first(elf, frames, address)) is not None
    }
    found: dict[tuple[str, int], list[CallSite]] = {}
    for address, function, state in calls:
        instruction = function.instructions[address]
        callback = state.get("rsi")
        target = callback.value if isinstance(callback, Constant) else 0
        name = _name(elf, symbols, state, target)
        context = _context(state, symbols, getters, variables)
        key = (name, target if elf.is_code(target) else 0)
        found.setdefault(key, []).append(CallSite(address, instruction.bytes.hex(), context))
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
        elf.build_id, elf.code_hash, version, scheduler, found_by, halves, variables, qmp,
        _threads(elf, symbols, frames, created),
    )  # fmt: skip


def _threads(
    elf: Elf, symbols: SymbolTable, frames: CallFrames, created: list[State]
) -> dict[str, int]:
    """The functions that threads of known names begin with; and the IOThreads', whose names are
    made at run time: theirs is the only such function that polls.
    """
    found: dict[str, int] = {}
    poll = symbols.address("aio_poll")
    for state in created:
        name, start = state.get("rsi"), state.get("rdx")
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
    code = Function(elf, *extent)
    return any(code.callee(address) == callee for address in code.instructions)


def _getters_by_names(
    elf: Elf, symbols: SymbolTable, calls: list[tuple[int, Function, State]]
) -> dict[int, str]:
    """The functions that return the two contexts, told by who is scheduled with their result.

    job_exit() goes into the main context in every QEMU that has jobs; do_qmp_dispatch_bh()
    into the iohandler context since effd60c878 (9.0), before that into main.
    """
    getters: dict[int, str] = {}
    for bottom_half, context in (("job_exit", "main"), ("do_qmp_dispatch_bh", "iohandler")):
        for _address, _function, state in calls:
            argument = state.get("rdi")
            if isinstance(argument, Returned) and _name(elf, symbols, state, 0) == bottom_half:
                getters.setdefault(argument.function, context)
    return getters


def _calls(
    elf: Elf, frames: CallFrames, targets: set[int]
) -> list[tuple[int, Function, State]]:  # fmt: skip
    """Every real call (or tail call) to one of the targets, with the registers before it."""
    by_function: dict[tuple[int, int], list[int]] = {}
    for address in references_to(elf, targets):
        extent = frames.function(address)
        if extent is not None:
            by_function.setdefault(extent, []).append(address)
    calls = []
    for extent, addresses in by_function.items():
        function = Function(elf, *extent)
        states = function.states()
        calls += [
            (address, function, states.get(address, {}))
            for address in addresses
            if address in function.instructions and function.callee(address) in targets
        ]
    return sorted(calls, key=lambda call: call[0])


def _name(elf: Elf, symbols: SymbolTable, state: State, callback: int) -> str:
    """The bottom half's name: the fourth argument, else the callback's symbol.

    QEMU stringifies the callback's expression: a name that is no identifier, or that is a
    variable's ("cb"), is no function's.
    """
    argument = state.get("rcx")
    text = elf.c_string(argument.value) if isinstance(argument, Constant) else None
    if text and (IDENTIFIER.match(text) or not callback):
        return text
    symbol = symbols.lookup(callback) if callback else None
    return symbol[0] if symbol and symbol[1] == 0 else text or "?"


def _context(
    state: State, symbols: SymbolTable, getters: dict[int, str], variables: dict[str, int]
) -> str:
    argument = state.get("rdi")
    if isinstance(argument, Returned):
        if argument.function in getters:
            return getters[argument.function]
        symbol = symbols.lookup(argument.function)
        return f"{symbol[0]}()" if symbol else ""
    if isinstance(argument, Loaded):
        # The getter inlined (link-time optimisation).
        return next((n for n, v in variables.items() if v == argument.address), "")
    return ""


def _loaded_first(elf: Elf, frames: CallFrames, function: int) -> int | None:
    """The static variable that a getter loads into rax first."""
    extent = frames.function(function) or (function, function + 32)
    code = Function(elf, *extent)
    for address in sorted(code.instructions):
        state = code.states().get(address, {})
        if isinstance(value := state.get("rax"), Loaded):
            return value.address
    return None
