"""Where `--all` puts its probes: cheap instructions of the event loop, found in the code.

The kernel emulates ``push``, ``nop``, ``jmp``, ``jcc`` and ``call``; any other instruction is
copied out and single-stepped, a second trap that costs forty times as much (docs/probes.md).
Wanted is therefore an emulated instruction that runs exactly once per event, outside any loop,
at which the registers still hold what the record needs.
"""

from __future__ import annotations

import numpy as np
from capstone import x86

from qtrace.errors import ScanFailed
from qtrace.target.all_plan import AllPlan, AllSite, Kind
from qtrace.target.arch_x86_64 import RSP
from qtrace.target.bh_layout import BottomHalfLayout, calibrate_bottom_half
from qtrace.target.cheap import (
    emulated,
    ends_block,
    first_allowed,
    first_emulated,
    is_written,
    runs_once,
    writes,
)
from qtrace.target.dataflow import Function, direct_target, full_register, references_to
from qtrace.target.elf import Elf
from qtrace.target.enqueue import c_expression, enqueue_site, find_cmpxchgs
from qtrace.target.maps import Module

# Call sites of qemu_bh_cancel() up to which each gets its own probe.
MAX_CALLERS = 64
CALLEE_SAVED = frozenset({"rbx", "rbp", "r12", "r13", "r14", "r15"})


def plan_all(module: Module, imports_cancel: bool = False) -> AllPlan:
    """Choose the sites in a binary's own code.

    Args:
        imports_cancel: a module of this QEMU (block-*.so) calls qemu_bh_cancel() too.

    Raises ScanFailed with the reason when this binary cannot be recorded so.
    """
    layout = calibrate_bottom_half(module)
    chooser = _Chooser(module, layout)
    enqueues, forms = chooser.enqueues()
    run, ended, offsets, returns_to = chooser.run_and_return()
    cancels = chooser.cancels(imports_cancel)
    co_schedule = chooser.entry("co_schedule", "aio_co_schedule", ("rdi", "rsi"))
    sites = (*enqueues, run, ended, *cancels, co_schedule)
    defines: dict[str, int | str] = {
        "ENQUEUES": " ".join(
            f"ENQUEUE({number}, {', '.join(str(part) for part in form)})"
            for number, form in enumerate(forms)
        ),
        "BH_CTX": layout.ctx,
        "BH_NAME": layout.name,
        "BH_CALLBACK": layout.callback,
        "BH_OPAQUE": layout.opaque,
        **offsets,
    }
    dear = [site for site in sites if not site.emulated]
    notes = [
        f"{site.kind} at {site.where}: no cheap instruction, each hit is single-stepped"
        for site in dear
    ]
    return AllPlan(sites, tuple(defines.items()), layout, returns_to, tuple(notes))


# A form of enqueue: C expressions of the bottom half and of the new flags, and the offset of
# the return address from rsp.
_Form = tuple[str, str, int]


class _Chooser:
    """Looks for the sites in one binary."""

    def __init__(self, module: Module, layout: BottomHalfLayout) -> None:
        self._module = module
        self._elf: Elf = module.elf
        self._layout = layout

    def enqueues(self) -> tuple[list[AllSite], list[_Form]]:
        """Every aio_bh_enqueue(), shared (10.0) or inlined (7.2: seven times).

        At the branch after its atomic OR, rax holds the old flags. All are found by the OR
        itself, so that none that the compiler made out of sight is missed.
        """
        sites: list[AllSite] = []
        forms: list[_Form] = []
        for address in find_cmpxchgs(self._elf, self._layout.flags):
            extent = self._module.frames.function(address)
            if extent is None:
                continue
            function = Function(self._elf, *extent)
            found = enqueue_site(function, address, self._layout.flags)
            if found is None:
                continue
            site, bh, new_flags, flags_register = found
            form = (
                c_expression(bh),
                c_expression(flags_register) if flags_register else "0",
                self._caller(site),
            )
            if form not in forms:
                forms.append(form)
            sites.append(
                self._site("enqueue", function, site, f"enqueue_{forms.index(form)}", new_flags)
            )
        for symbol in ("qemu_bh_schedule", "aio_bh_schedule_oneshot_full"):
            if not sites or not self._enqueues_through(symbol, sites):
                raise self._refuse(f"the atomic OR behind {symbol}() was not found")
        return sites, forms

    def _enqueues_through(self, symbol: str, sites: list[AllSite]) -> bool:
        """Whether a function has a site in it, or ends in a jump to a function that has one."""
        address = self._module.symbols.address(symbol)
        if address is None:
            return symbol != "qemu_bh_schedule"
        extent = self._module.frames.function(address)
        if extent is None:
            return False
        code = Function(self._elf, *extent).instructions.values()
        targets = {direct_target(i) for i in code if i.group(x86.X86_GRP_JUMP)}
        for site in sites:
            owner = self._module.frames.function(site.vaddr)
            if owner and (owner == extent or owner[0] in targets):
                return True
        return False

    def run_and_return(self) -> tuple[AllSite, AllSite, dict[str, int | str], int]:
        """aio_bh_call()'s entry, the branch after its call, and where the callers' addresses lie.

        With aio_bh_call() inlined into aio_bh_poll() there is no such call.
        """
        run = self.entry("run", "aio_bh_call", ("rdi",))
        poll, called, called_end = self._call("aio_bh_poll", "aio_bh_call")
        site = first_emulated(poll, called_end)
        if site is None or not runs_once(poll, called_end, site):
            site = called_end
        bh = _argument(poll, called)
        if bh not in CALLEE_SAVED or is_written(poll, called_end, site, bh):
            bh = ""
        depth = self._caller(run.vaddr)
        below_poll = self._frame(called)
        outer = depth + below_poll
        _, poll_called, _ = self._call("aio_poll", "aio_bh_poll")
        offsets: dict[str, int | str] = {
            "ENDED_BH": c_expression(bh) if bh else "0",
            "RUN_DEPTH": depth + 8,
            "POLL_CALLER": outer,
            "OUTER_CALLER": outer + self._frame(poll_called),
        }
        if self._caller(site) - self._caller(called):
            raise self._refuse("aio_bh_poll() moves its stack pointer after aio_bh_call()")
        return run, self._site("return", poll, site, "ended"), offsets, called_end

    def cancels(self, imported: bool) -> list[AllSite]:
        """The calls to qemu_bh_cancel(): it has no instruction that could be emulated.

        Its first, a locked `and`, takes no probe at all: the kernel refuses that prefix. The
        one after it serves where a module calls it as well, or something takes its address.
        """
        target = self._module.symbols.address("qemu_bh_cancel")
        extent = self._module.frames.function(target) if target is not None else None
        if target is None or extent is None:
            raise self._refuse("it has no symbol qemu_bh_cancel")
        function = Function(self._elf, *extent)
        inside = self._site("cancel", function, first_allowed(function), "cancel")
        if imported or _address_taken(self._elf, target):
            return [inside]
        sites = []
        for address in references_to(self._elf, {target}):
            extent = self._module.frames.function(address)
            caller = Function(self._elf, *extent) if extent else None
            instruction = caller.instructions.get(address) if caller else None
            if caller is None or instruction is None or direct_target(instruction) != target:
                continue
            if instruction.id not in (x86.X86_INS_CALL, x86.X86_INS_JMP):
                return [inside]
            sites.append(self._site("cancel", caller, address, "cancel"))
        return sites if len(sites) <= MAX_CALLERS else [inside]

    def entry(self, kind: Kind, symbol: str, arguments: tuple[str, ...]) -> AllSite:
        """The first emulated instruction of a function, its arguments still in registers."""
        address = self._module.symbols.address(symbol)
        extent = self._module.frames.function(address) if address is not None else None
        if address is None or extent is None:
            raise self._refuse(f"it has no symbol {symbol}")
        function = Function(self._elf, *extent)
        site = address
        for at in sorted(function.instructions):
            instruction = function.instructions[at]
            if emulated(instruction) and runs_once(function, address, at):
                site = at
                break
            if ends_block(instruction) or writes(instruction) & set(arguments):
                break
        return self._site(kind, function, site, kind)

    def _call(self, caller: str, callee: str) -> tuple[Function, int, int]:
        """The one call of a function in another: the latter, the call's address and its end."""
        target = self._module.symbols.address(callee)
        address = self._module.symbols.address(caller)
        extent = self._module.frames.function(address) if address is not None else None
        if extent is None:
            raise self._refuse(f"it has no symbol {caller}")
        function = Function(self._elf, *extent)
        calls = [
            i
            for i in function.instructions.values()
            if i.id == x86.X86_INS_CALL and direct_target(i) == target
        ]
        if len(calls) != 1:
            raise self._refuse(f"{caller}() calls {callee}() in {len(calls)} places, not in one")
        return function, calls[0].address, calls[0].address + calls[0].size

    def _frame(self, vaddr: int) -> int:
        """Bytes from rsp to behind the return address, at an instruction."""
        rule = self._module.frames.rule(vaddr)
        if rule is None or rule.cfa_register != RSP:
            raise self._refuse(f"the frame at {vaddr:#x} has no fixed size")
        return rule.cfa_offset

    def _caller(self, vaddr: int) -> int:
        return self._frame(vaddr) - 8

    def _site(
        self, kind: Kind, function: Function, vaddr: int, program: str, new_flags: int = 0
    ) -> AllSite:
        instruction = function.instructions[vaddr]
        named = self._module.function_name(vaddr)
        text = f"{instruction.mnemonic} {instruction.op_str}".strip()
        where = f"{self._module.name}@{vaddr:#x}"
        if named:
            where = f"{named[0]}+{named[1]:#x}" if named[1] else named[0]
        return AllSite(kind, where, vaddr, program, text, emulated(instruction), new_flags)

    def _refuse(self, why: str) -> ScanFailed:
        return ScanFailed(
            f"{self._module.name} cannot be recorded with --all: {why}", "record without --all"
        )


def _argument(function: Function, call: int) -> str:
    """The register that was copied into rdi for a call."""
    for at in sorted((a for a in function.instructions if a < call), reverse=True):
        instruction = function.instructions[at]
        if "rdi" in writes(instruction):
            operands = instruction.operands
            if instruction.id == x86.X86_INS_MOV and operands[1].type == x86.X86_OP_REG:
                return full_register(instruction, operands[1].reg)
            return ""
    return ""


def _address_taken(elf: Elf, target: int) -> bool:
    """Whether something may call a function by its address: a lea, or a relocated pointer."""
    for segment in elf.code:
        code = np.frombuffer(
            memoryview(elf.data)[segment.offset : segment.offset + segment.filesz], np.uint8
        )
        # lea r64, [rip + disp32]: REX.W 8d, mod 00 rm 101
        at = np.flatnonzero((code[1:-5] == 0x8D) & (code[2:-4] & 0xC7 == 0x05))
        words = np.lib.stride_tricks.sliding_window_view(code, 4)[at + 3].copy()
        goes_to = segment.vaddr + at + 7 + words.view("<i4")[:, 0]
        if (goes_to == target).any():
            return True
    # An R_X86_64_RELATIVE entry has the address as its addend.
    relocations = elf.section(".rela.dyn") or b""
    return target in np.frombuffer(relocations[: len(relocations) // 24 * 24], "<i8")[2::3]
