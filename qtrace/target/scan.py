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

import numpy as np

from qtrace.errors import NotQemu, ScanFailed
from qtrace.target.cfi import CallFrames
from qtrace.target.dataflow import (
    Constant,
    Function,
    Loaded,
    Returned,
    State,
    direct_target,
    displacements,
    references_to,
)  # fmt: skip
from qtrace.target.elf import Elf
from qtrace.target.exits import find_exits
from qtrace.target.qmp_sites import DISPATCH_BH, QmpSite, find_qmp_sites
from qtrace.target.symbols import SymbolTable

# aio_bh_schedule_oneshot_full() has a name argument since 0f08586c71 (6.2).
SCHEDULERS = ("aio_bh_schedule_oneshot_full", "aio_bh_schedule_oneshot")
# Names that aio_bh_schedule_oneshot_full() is called with in every QEMU: where a binary
# exports no symbols, the function that gets them all as fourth argument is it.
WELL_KNOWN_NAMES = (
    "snapshot_save_job_bh", "snapshot_load_job_bh", "snapshot_delete_job_bh", "job_exit",
    "aio_wait_bh", "dummy_bh_cb", "bdrv_co_drain_bh_cb", "do_qmp_dispatch_bh",
)  # fmt: skip
GETTERS = {"qemu_get_aio_context": "main", "iohandler_get_aio_context": "iohandler"}
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
    """

    build_id: str
    code_hash: str
    version: str
    scheduler: int
    found_by: str
    bottom_halves: tuple[BottomHalf, ...]
    context_variables: dict[str, int]
    qmp: tuple[QmpSite, ...]

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
    scheduler, found_by = _find_scheduler(elf, symbols, frames)
    calls = _calls(elf, frames, {scheduler})
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
        elf.build_id, elf.code_hash, version, scheduler, found_by, halves, variables, qmp
    )  # fmt: skip


def _find_scheduler(elf: Elf, symbols: SymbolTable, frames: CallFrames) -> tuple[int, str]:
    for name in SCHEDULERS:
        address = symbols.address(name)
        if address is not None:
            return address, "symbol"
    address = _scheduler_by_names(elf, frames)
    if address is None:
        raise NotQemu(elf.name)
    return address, "names"


def _scheduler_by_names(elf: Elf, frames: CallFrames) -> int | None:
    """The one function that gets well-known names as its fourth argument.

    Raises ScanFailed when the names lead to more than one.
    """
    callees: dict[int, set[str]] = {}
    for name in WELL_KNOWN_NAMES:
        for text in _strings(elf, name):
            for reference in _lea_references(elf, text):
                extent = frames.function(reference)
                if extent is None:
                    continue
                function = Function(elf, *extent)
                for address, state in function.states().items():
                    target = _callee(function, address)
                    if target and state.get("rcx") == Constant(text):
                        callees.setdefault(target, set()).add(name)
    if not callees:
        return None
    best = sorted(callees, key=lambda callee: len(callees[callee]), reverse=True)
    if len(best) > 1 and len(callees[best[0]]) == len(callees[best[1]]):
        raise ScanFailed(
            f"{elf.name} has no symbols, and its code does not tell the scheduling function",
            "install the debug symbols of this QEMU",
        )
    return best[0]


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


def _callee(function: Function, address: int) -> int | None:
    """The target of a direct call, or of a direct jump out of the function (a tail call)."""
    instruction = function.instructions[address]
    if instruction.mnemonic == "call":
        return direct_target(instruction)
    if instruction.mnemonic.startswith("j"):
        target = direct_target(instruction)
        if target is not None and not function.start <= target < function.end:
            return target
    return None


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
            if address in function.instructions and _callee(function, address) in targets
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


def _strings(elf: Elf, text: str) -> list[int]:
    """Link-time addresses at which exactly this C string starts."""
    needle = b"\0" + text.encode() + b"\0"
    found, at = [], elf.data.find(needle)
    while at >= 0:
        vaddr = elf.vaddr_of(at + 1)
        if vaddr is not None:
            found.append(vaddr)
        at = elf.data.find(needle, at + 1)
    return found


def _lea_references(elf: Elf, target: int) -> list[int]:
    """Addresses of `lea rcx, [rip + target]`: 48 8d 0d, the displacement after it."""
    hits = []
    for segment in elf.code:
        code = np.frombuffer(
            memoryview(elf.data)[segment.offset : segment.offset + segment.filesz], np.uint8
        )
        at = np.flatnonzero((code[:-6] == 0x48) & (code[1:-5] == 0x8D) & (code[2:-4] == 0x0D))
        loads = segment.vaddr + at + 7 + displacements(code, at + 3)
        hits += [int(segment.vaddr + a) for a in at[loads == target]]
    return hits
