"""Where `--all` puts its probes: cheap instructions of the event loop, found in the code.

The kernel emulates ``push``, ``nop``, ``jmp``, ``jcc`` and ``call``; any other instruction is
copied out and single-stepped, a second trap that costs forty times as much (docs/probes.md).
Wanted is therefore an emulated instruction that runs exactly once per event, outside any loop,
at which the registers still hold what the record needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from capstone import x86

from qtrace.binary.code_x86_64 import direct_target
from qtrace.binary.dataflow import Function, callers_of
from qtrace.binary.elf import Elf
from qtrace.binary.emulated import (
    ends_block,
    first_emulated,
    is_joined,
    is_written,
    past_guard,
    runs_once,
)
from qtrace.binary.instruction_set import instruction_set
from qtrace.binary.module import Module
from qtrace.errors import ScanFailed
from qtrace.machine.arch_x86_64 import CALLEE_SAVED_NAMES, X86_64
from qtrace.machine.architecture import Architecture
from qtrace.sites.all_plan import AllPlan, AllSite, BottomHalfLayout, refusal
from qtrace.sites.bh_layout import calibrate_bottom_half
from qtrace.sites.caller_places import Place, Registers
from qtrace.sites.cancels import CancelSite, find_cancels
from qtrace.sites.enqueue import EnqueueSite, find_enqueues

# Of a module and of where QEMUBH has its flags.
FindEnqueues = Callable[[Module, int], list[EnqueueSite]]
FindCancels = Callable[[Module, int], list[CancelSite]]
# Call sites of qemu_bh_cancel() up to which each gets its own probe.
MAX_CALLERS = 64
# What others call to schedule and cancel (util/async.c): of these the caller tells who does.
OWN = frozenset({
    "qemu_bh_schedule", "qemu_bh_schedule_idle", "qemu_bh_delete", "qemu_bh_cancel",
    "aio_bh_schedule_oneshot_full", "aio_bh_schedule_oneshot", "aio_co_schedule",
    "aio_co_reschedule_self",
})  # fmt: skip


def plan_all(module: Module, imports_cancel: bool = False) -> AllPlan:
    """Choose the sites in a binary's own code.

    Args:
        imports_cancel: a module of this QEMU (block-*.so) calls qemu_bh_cancel() too.

    Raises ScanFailed with the reason when this binary cannot be recorded so.
    """
    if module.symbols.address("aio_bh_poll") is None:
        raise ScanFailed(
            f"{module.name} cannot be recorded with --all: it exports no functions (as one built "
            "without --enable-modules)",
            "install its debug symbols, or record without --all",
        )
    layout = calibrate_bottom_half(module)
    chooser = _Chooser(module, layout)
    enqueues = chooser.enqueues()
    run, ended, returns_to = chooser.run_and_return()
    cancels = chooser.cancels(imports_cancel)
    given = module.elf.architecture.argument_names
    co_schedule = chooser.entry("co_schedule", "aio_co_schedule", given[:2])
    chooser.programs["co_schedule"] = ("co_schedule", {})
    sites = (*enqueues, run, ended, *cancels, co_schedule)
    programs = {
        name: (function, {**_offsets(layout), **filling})
        for name, (function, filling) in chooser.programs.items()
    }
    dear = [site for site in sites if not site.emulated]
    notes = [
        f"{site.kind} at {site.where}: no cheap instruction, each hit is single-stepped"
        for site in dear
    ]
    return AllPlan(sites, programs, layout, returns_to, tuple(notes))


def _offsets(layout: BottomHalfLayout) -> dict[str, int]:
    """What fills the holes for where QEMUBH keeps what."""
    fields = (layout.ctx, layout.name, layout.callback, layout.opaque)
    return {
        "BH_CTX": layout.ctx,
        "BH_NAME": max(layout.name, 0),
        "BH_CALLBACK": layout.callback,
        "BH_OPAQUE": layout.opaque,
        "BH_HAS_NAME": int(layout.name >= 0),
        "BH_IN_A_ROW": int(fields == (0, 8, 16, 24)),
    }


class _Chooser:
    """Looks for the sites in one binary.

    Attributes:
        programs: those that the sites found so far run, as in ``AllPlan``.
    """

    def __init__(self, module: Module, layout: BottomHalfLayout) -> None:
        self._module = module
        self._elf: Elf = module.elf
        self._layout = layout
        self.programs: dict[str, tuple[str, dict[str, int]]] = {}
        self._machine = module.elf.architecture
        self._here = Registers.here(self._machine)
        self._find_enqueues, self._find_cancels = _finders(self._machine)
        self._shared = self._jumps_to("qemu_bh_schedule")

    def enqueues(self) -> list[AllSite]:
        """Every aio_bh_enqueue(), shared (10.0) or inlined (7.2: seven times).

        At the branch after its atomic OR, the register that functions return in holds the old
        flags. All are found by the OR itself, so that none that the compiler made out of sight is
        missed.
        """
        sites: list[AllSite] = []
        for found in self._find_enqueues(self._module, self._layout.flags):
            program = self._program("enqueue", {
                "BH": self._register(found.bh),
                "NEW_FLAGS": self._register(found.register or self._machine.result_name),
                "NEW_FLAGS_ARE_KNOWN": int(bool(found.register)),
                **self._caller(found.site, self._here)[0].filling("CALLER", self._machine),
            })  # fmt: skip
            sites.append(
                self._site("enqueue", found.function, found.site, program, found.new_flags)
            )
        for symbol in ("qemu_bh_schedule", "aio_bh_schedule_oneshot_full"):
            if not sites or not self._enqueues_through(symbol, sites):
                raise self._refuse(f"the atomic OR behind {symbol}() was not found")
        return sites

    def _program(self, function: str, filling: dict[str, int]) -> str:
        """The name of a function of probes/all.bpf.c that is filled in so."""
        alike = {n: found for n, (of, found) in self.programs.items() if of == function}
        for name, found in alike.items():
            if found == filling:
                return name
        name = f"{function}_{len(alike)}"
        self.programs[name] = (function, filling)
        return name

    def _enqueues_through(self, symbol: str, sites: list[AllSite]) -> bool:
        """Whether a function has a site in it, or ends in a jump to a function that has one."""
        address = self._module.symbols.address(symbol)
        if address is None:
            return symbol != "qemu_bh_schedule"
        targets = {address, *self._jumps_to(symbol)}
        owners = (self._module.frames.function(site.vaddr) for site in sites)
        return any(owner and owner[0] in targets for owner in owners)

    def _jumps_to(self, symbol: str) -> set[int]:
        """Where a function's jumps lead: that of its end to a shared aio_bh_enqueue(), too."""
        address = self._module.symbols.address(symbol)
        extent = self._module.frames.function(address) if address is not None else None
        if extent is None:
            return set()
        function = Function(self._elf, *extent)
        code = function.set
        jumps = (code.target(i) for i in function.instructions.values() if code.is_jump(i))
        return {target for target in jumps if target is not None}

    def run_and_return(self) -> tuple[AllSite, AllSite, int]:
        """aio_bh_call()'s entry, the branch after its call, and where it returns to."""
        poll = self._named("aio_bh_poll")
        target = self._module.symbols.address("aio_bh_call")
        if target not in poll.calls().values():
            return self._inlined_run(poll)
        given = self._machine.argument_names[0]
        run = self.entry("run", "aio_bh_call", (given,))
        poll, called, called_end = self._call("aio_bh_poll", "aio_bh_call")
        _, in_poll = self._caller(run.vaddr, self._here)
        inner, in_caller = self._caller(called, in_poll)
        if in_poll.stack.register != self._machine.stack_pointer_name:
            raise self._refuse("aio_bh_call() has its own frame pointer where it can be probed")
        self._run_program(given, in_poll.stack.offset, inner, in_caller)
        return run, self._ended(poll, _argument(poll, called, given), called_end), called_end

    def _inlined_run(self, poll: Function) -> tuple[AllSite, AllSite, int]:
        """The same where aio_bh_poll() calls the callbacks itself (5.2): the branch that skips the
        call of one that is not to be run."""
        if self._machine is not X86_64:
            raise self._refuse("aio_bh_poll() runs bottom halves itself, known of x86-64 only")
        calls = [
            (at, i)
            for at, i in poll.instructions.items()
            if i.id == x86.X86_INS_CALL
            and i.operands[0].type == x86.X86_OP_MEM
            and i.operands[0].mem.disp == self._layout.callback
        ]
        if len(calls) != 1:
            raise self._refuse(f"aio_bh_poll() calls a bottom half in {len(calls)} places")
        ((called, call),) = calls
        bh = str(call.reg_name(call.operands[0].mem.base))
        branch = _skipping(poll, called)
        if branch is None or bh not in CALLEE_SAVED_NAMES or is_written(poll, branch, called, bh):
            raise self._refuse("it is unclear what leads to the call of a bottom half")
        inner, in_caller = self._caller(branch, self._here)
        self._run_program(bh, 0, inner, in_caller, if_equal=True)
        end = called + call.size
        return self._site("run", poll, branch, "run"), self._ended(poll, bh, end), end

    def _run_program(
        self, bh: str, depth: int, inner: Place, in_caller: Registers, *, if_equal: bool = False
    ) -> None:
        _, poll_called, _ = self._call("aio_poll", "aio_bh_poll")
        outer, _ = self._caller(poll_called, in_caller)
        self.programs["run"] = ("run", {
            "BH": self._register(bh),
            "RUN_IF_EQUAL": int(if_equal),
            "RUN_DEPTH": depth,
            **inner.filling("POLL_CALLER", self._machine),
            **outer.filling("OUTER_CALLER", self._machine),
        })  # fmt: skip

    def _ended(self, poll: Function, bh: str, called_end: int) -> AllSite:
        """Behind the call of a bottom half, which a register held, in aio_bh_poll()."""
        site = first_emulated(poll, called_end)
        if site is None or not runs_once(poll, called_end, site):
            site = called_end
        if bh not in self._machine.callee_saved_names or is_written(poll, called_end, site, bh):
            bh = ""
        if is_written(poll, called_end, site, poll.stack_pointer):
            raise self._refuse("aio_bh_poll() moves its stack pointer after aio_bh_call()")
        self.programs["ended"] = ("ended", {
            "BH": self._register(bh or self._machine.result_name), "BH_IS_KNOWN": int(bool(bh)),
        })  # fmt: skip
        # Debian 13's compiler jumps here for one that was cancelled or deleted, too.
        shared = is_joined(poll, called_end)
        return replace(self._site("return", poll, site, "ended"), shared=shared)

    def cancels(self, imported: bool) -> list[AllSite]:
        """Where qemu_bh_cancel() is called, and behind its atomic AND wherever that is inlined.

        The function itself has no instruction that could be emulated: the one behind its AND
        serves where a module calls it as well, or something takes its address (on aarch64 its
        first one: behind the AND no register holds the bottom half).
        """
        target = self._module.symbols.address("qemu_bh_cancel")
        places: list[tuple[Function, int, str]] = []
        found = self._find_cancels(self._module, self._layout.flags)
        if not found:
            raise self._refuse("the atomic AND of qemu_bh_cancel() was not found")
        for one in found:
            calls = None if imported else self._calls_to(one.function.start)
            if one.function.start != target or calls is None:
                places.append((one.function, one.site, one.bh))
            else:
                given = self._machine.argument_names[0]
                places += [(caller, at, given) for caller, at in calls]
        return [
            self._site("cancel", function, at, self._program("cancel", {"BH": self._register(bh)}))
            for function, at, bh in sorted(places, key=lambda one: one[1])
        ]

    def _calls_to(self, target: int) -> list[tuple[Function, int]] | None:
        """Every call of a function; None where one cannot be probed, or they are too many."""
        if _address_taken(self._elf, target):
            return None
        calls = []
        for extent, addresses in callers_of(self._elf, self._module.frames, {target}).items():
            caller = Function(self._elf, *extent)
            for address in addresses:
                instruction = caller.instructions.get(address)
                code = caller.set
                if instruction is None or code.target(instruction) != target:
                    continue
                if not (code.is_call(instruction) or code.always_jumps(instruction)):
                    return None
                calls.append((caller, address))
        return calls if len(calls) <= MAX_CALLERS else None

    def entry(self, kind: str, symbol: str, arguments: tuple[str, ...]) -> AllSite:
        """The first emulated instruction of a function, its arguments still in registers."""
        function = self._named(symbol)
        address = function.start
        site = past_guard(self._elf, address)
        for at in sorted(function.instructions):
            instruction = function.instructions[at]
            if function.set.is_simulated(instruction) and runs_once(function, address, at):
                site = at
                break
            changed = function.set.writes(instruction)
            if ends_block(function, instruction) or changed & set(arguments):
                break
        return self._site(kind, function, site, kind)

    def _call(self, caller: str, callee: str) -> tuple[Function, int, int]:
        """The one call of a function in another: the latter, the call's address and its end."""
        target = self._module.symbols.address(callee)
        function = self._named(caller)
        calls = [at for at, goes_to in function.calls().items() if goes_to == target]
        if len(calls) != 1:
            raise self._refuse(f"{caller}() calls {callee}() in {len(calls)} places, not in one")
        return function, calls[0], calls[0] + function.instructions[calls[0]].size

    def _caller(self, vaddr: int, registers: Registers) -> tuple[Place, Registers]:
        """Where the return address of the frame at an instruction lies, and its caller's frame."""
        found = registers.caller(self._module.frames.rule(vaddr))
        if found is None:
            raise self._refuse(f"the frame at {vaddr:#x} has no fixed size")
        return found

    def _named(self, symbol: str) -> Function:
        address = self._module.symbols.address(symbol)
        extent = self._module.frames.function(address) if address is not None else None
        if extent is None:
            raise self._refuse(f"it has no symbol {symbol}")
        return Function(self._elf, *extent)

    def _register(self, name: str) -> int:
        return self._machine.register_offset(name)

    def _site(
        self, kind: str, function: Function, vaddr: int, program: str, new_flags: int = 0
    ) -> AllSite:
        instruction = function.instructions[vaddr]
        named = self._module.function_name(vaddr)
        text = f"{instruction.mnemonic} {instruction.op_str}".strip()
        where = f"{self._module.name}@{vaddr:#x}"
        if named:
            where = f"{named[0]}+{named[1]:#x}" if named[1] else named[0]
        inlined = (
            kind in ("enqueue", "cancel")
            and not function.set.is_call(instruction)
            and (named is None or named[0] not in OWN)
            and function.start not in self._shared
        )
        is_cheap = function.set.is_simulated(instruction)
        return AllSite(kind, where, vaddr, program, text, is_cheap, new_flags, inlined)

    def _refuse(self, why: str) -> ScanFailed:
        return refusal(self._module, why)


def _finders(machine: Architecture) -> tuple[FindEnqueues, FindCancels]:
    """How the two atomic operations look there."""
    if machine is X86_64:
        return find_enqueues, find_cancels
    from qtrace.sites import outline_atomics

    return outline_atomics.find_enqueues, outline_atomics.find_cancels


def _skipping(function: Function, call: int) -> int | None:
    """The `jne` that alone decides whether a call is reached; None where there is none."""
    for at in sorted((a for a in function.instructions if a < call), reverse=True):
        instruction = function.instructions[at]
        if is_joined(function, at + instruction.size):
            return None
        if ends_block(function, instruction):
            skips = direct_target(instruction)
            alone = instruction.id == x86.X86_INS_JNE and skips not in range(at, call + 1)
            return at if alone else None
    return None


def _argument(function: Function, call: int, given: str) -> str:
    """The register that was copied into an argument's for a call; empty where none was."""
    instruction = function.last_write(given, call, reach=call - function.start)
    return "" if instruction is None else function.set.copies(instruction)


def _address_taken(elf: Elf, target: int) -> bool:
    """Whether something may call a function by its address, made in code or relocated."""
    if instruction_set(elf).loads_of(elf, target):
        return True
    # An R_X86_64_RELATIVE (R_AARCH64_RELATIVE) entry has the address as its addend.
    relocations = elf.section(".rela.dyn") or b""
    return target in np.frombuffer(relocations[: len(relocations) // 24 * 24], "<i8")[2::3]
