"""Where `--all` puts its probes: cheap instructions of the event loop, found in the code.

The kernel emulates ``push``, ``nop``, ``jmp``, ``jcc`` and ``call``; any other instruction is
copied out and single-stepped, a second trap that costs forty times as much (docs/probes.md).
Wanted is therefore an emulated instruction that runs exactly once per event, outside any loop,
at which the registers still hold what the record needs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from capstone import x86

from qtrace.binary.arrays import code_arrays
from qtrace.binary.code_x86_64 import direct_target, full_register, writes
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
from qtrace.binary.module import Module
from qtrace.errors import ScanFailed
from qtrace.machine.arch_x86_64 import CALLEE_SAVED_NAMES, X86_64, pt_regs_offset
from qtrace.sites.all_plan import AllPlan, AllSite, BottomHalfLayout
from qtrace.sites.bh_layout import calibrate_bottom_half
from qtrace.sites.caller_places import Place, Registers
from qtrace.sites.cancels import behind, find_ands
from qtrace.sites.enqueue import behind_loop, enqueue_site, find_cmpxchgs

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
    if module.elf.architecture is not X86_64:
        raise ScanFailed(
            f"{module.name} cannot be recorded with --all: what is sought in the code is known of "
            f"x86-64 only, and it is an {module.elf.architecture.name} program",
            "record without --all",
        )
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
    co_schedule = chooser.entry("co_schedule", "aio_co_schedule", ("rdi", "rsi"))
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
        self._shared = self._jumps_to("qemu_bh_schedule")

    def enqueues(self) -> list[AllSite]:
        """Every aio_bh_enqueue(), shared (10.0) or inlined (7.2: seven times).

        At the branch after its atomic OR, rax holds the old flags. All are found by the OR
        itself, so that none that the compiler made out of sight is missed.
        """
        sites: list[AllSite] = []
        for address in find_cmpxchgs(self._elf, self._layout.flags):
            extent = self._module.frames.function(address)
            if extent is None:
                continue
            function = Function(self._elf, *extent)
            found = enqueue_site(function, address, self._layout.flags)
            if found is None:
                continue
            if is_joined(function, behind_loop(function, address)):
                raise self._refuse(f"more than the atomic OR at {address:#x} leads behind it")
            site, bh, new_flags, flags_register = found
            program = self._program("enqueue", {
                "BH": pt_regs_offset(bh),
                "NEW_FLAGS": pt_regs_offset(flags_register or "rax"),
                "NEW_FLAGS_ARE_KNOWN": int(bool(flags_register)),
                **self._caller(site, Registers())[0].filling("CALLER"),
            })  # fmt: skip
            sites.append(self._site("enqueue", function, site, program, new_flags))
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
        code = Function(self._elf, *extent).instructions.values()
        jumps = (direct_target(i) for i in code if i.group(x86.X86_GRP_JUMP))
        return {target for target in jumps if target is not None}

    def run_and_return(self) -> tuple[AllSite, AllSite, int]:
        """aio_bh_call()'s entry, the branch after its call, and where it returns to."""
        poll = self._named("aio_bh_poll")
        target = self._module.symbols.address("aio_bh_call")
        if target not in poll.calls().values():
            return self._inlined_run(poll)
        run = self.entry("run", "aio_bh_call", ("rdi",))
        poll, called, called_end = self._call("aio_bh_poll", "aio_bh_call")
        entered = [i for at, i in sorted(self._function(run.vaddr).instructions.items())]
        if any("rbp" in writes(i) for i in entered if i.address < run.vaddr):
            raise self._refuse("aio_bh_call() has its own frame pointer where it can be probed")
        depth, in_poll = self._caller(run.vaddr, Registers())
        inner, in_caller = self._caller(called, in_poll)
        self._run_program("rdi", depth.offset + 8, inner, in_caller)
        return run, self._ended(poll, _argument(poll, called), called_end), called_end

    def _inlined_run(self, poll: Function) -> tuple[AllSite, AllSite, int]:
        """The same where aio_bh_poll() calls the callbacks itself (5.2): the branch that skips the
        call of one that is not to be run."""
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
        inner, in_caller = self._caller(branch, Registers())
        self._run_program(bh, 0, inner, in_caller, if_equal=True)
        end = called + call.size
        return self._site("run", poll, branch, "run"), self._ended(poll, bh, end), end

    def _run_program(
        self, bh: str, depth: int, inner: Place, in_caller: Registers, *, if_equal: bool = False
    ) -> None:
        _, poll_called, _ = self._call("aio_poll", "aio_bh_poll")
        outer, _ = self._caller(poll_called, in_caller)
        self.programs["run"] = ("run", {
            "BH": pt_regs_offset(bh),
            "RUN_IF_EQUAL": int(if_equal),
            "RUN_DEPTH": depth,
            **inner.filling("POLL_CALLER"),
            **outer.filling("OUTER_CALLER"),
        })  # fmt: skip

    def _ended(self, poll: Function, bh: str, called_end: int) -> AllSite:
        """Behind the call of a bottom half, which a register held, in aio_bh_poll()."""
        site = first_emulated(poll, called_end)
        if site is None or not runs_once(poll, called_end, site):
            site = called_end
        if bh not in CALLEE_SAVED_NAMES or is_written(poll, called_end, site, bh):
            bh = ""
        if is_written(poll, called_end, site, poll.stack_pointer):
            raise self._refuse("aio_bh_poll() moves its stack pointer after aio_bh_call()")
        self.programs["ended"] = ("ended", {
            "BH": pt_regs_offset(bh or "rax"), "BH_IS_KNOWN": int(bool(bh)),
        })  # fmt: skip
        # Debian 13's compiler jumps here for one that was cancelled or deleted, too.
        shared = is_joined(poll, called_end)
        return replace(self._site("return", poll, site, "ended"), shared=shared)

    def cancels(self, imported: bool) -> list[AllSite]:
        """Where qemu_bh_cancel() is called, and behind its atomic AND wherever that is inlined.

        The function itself has no instruction that could be emulated: the one behind its AND
        serves where a module calls it as well, or something takes its address.
        """
        target = self._module.symbols.address("qemu_bh_cancel")
        found: list[tuple[Function, int, str]] = []
        ands = find_ands(self._elf, self._layout.flags)
        if not ands:
            raise self._refuse("the atomic AND of qemu_bh_cancel() was not found")
        for address in ands:
            function = self._function(address)
            place = behind(function, address)
            if place is None:
                raise self._refuse(f"the atomic AND at {address:#x} cannot be probed behind")
            calls = None if imported else self._calls_to(function.start)
            if function.start != target or calls is None:
                found.append((function, *place))
            else:
                found += [(caller, at, "rdi") for caller, at in calls]
        return [
            self._site("cancel", function, at, self._program("cancel", {"BH": pt_regs_offset(bh)}))
            for function, at, bh in sorted(found, key=lambda one: one[1])
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
                if instruction is None or direct_target(instruction) != target:
                    continue
                if instruction.id not in (x86.X86_INS_CALL, x86.X86_INS_JMP):
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
            if ends_block(function, instruction) or writes(instruction) & set(arguments):
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

    def _function(self, vaddr: int) -> Function:
        extent = self._module.frames.function(vaddr)
        if extent is None:
            raise self._refuse(f"the function at {vaddr:#x} has no unwind rules")
        return Function(self._elf, *extent)

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
            and instruction.id != x86.X86_INS_CALL
            and (named is None or named[0] not in OWN)
            and function.start not in self._shared
        )
        is_cheap = function.set.is_simulated(instruction)
        return AllSite(kind, where, vaddr, program, text, is_cheap, new_flags, inlined)

    def _refuse(self, why: str) -> ScanFailed:
        return ScanFailed(
            f"{self._module.name} cannot be recorded with --all: {why}", "record without --all"
        )


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


def _argument(function: Function, call: int) -> str:
    """The register that was copied into rdi for a call; empty where none was."""
    instruction = function.last_write("rdi", call, reach=call - function.start)
    if instruction is None or instruction.id != x86.X86_INS_MOV:
        return ""
    source = instruction.operands[1]
    return full_register(instruction, source.reg) if source.type == x86.X86_OP_REG else ""


def _address_taken(elf: Elf, target: int) -> bool:
    """Whether something may call a function by its address: a lea, or a relocated pointer."""
    for start, code in code_arrays(elf):
        # lea r64, [rip + disp32]: REX.W 8d, mod 00 rm 101
        at = np.flatnonzero((code[1:-5] == 0x8D) & (code[2:-4] & 0xC7 == 0x05))
        words = np.lib.stride_tricks.sliding_window_view(code, 4)[at + 3].copy()
        goes_to = start + at + 7 + words.view("<i4")[:, 0]
        if (goes_to == target).any():
            return True
    # An R_X86_64_RELATIVE entry has the address as its addend.
    relocations = elf.section(".rela.dyn") or b""
    return target in np.frombuffer(relocations[: len(relocations) // 24 * 24], "<i8")[2::3]
