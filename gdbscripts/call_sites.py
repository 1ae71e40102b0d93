"""Where the code schedules a bottom half, and which function that then runs.

Every caller hands over the bottom half's name, a C string, whose address a ``lea`` loads shortly
before the call. The search starts from the bytes (all direct calls to QEMU's functions) and
disassembles only the way from a ``lea`` to its call.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from qtrace.machine.arch_x86_64 import CALLEE_SAVED_NAMES
from qtrace.qemu.aio.instructions import Disassembly

# The function, and the registers of the arguments `name` and `cb` in it.
SCHEDULES = {"aio_bh_schedule_oneshot_full": ("rcx", "rsi")}
CREATES = {"aio_bh_new_full": ("rcx", "rsi"), "qemu_bh_new_full": ("rdx", "rdi")}
# lea r64, [rip + displacement], seven bytes.
_LEA = re.compile(rb"[\x48\x4c]\x8d[\x05\x0d\x15\x1d\x25\x2d\x35\x3d](?=(.{4}))", re.DOTALL)
# So many bytes and instructions from a lea to its call, at most.
REACH, STEPS = 256, 64
_NAME = re.compile(rb"[A-Za-z_]\w{0,63}\0")
# Instructions whose first operand is only read.
_READS = frozenset({"cmp", "test", "push", "nop", "nopw", "nopl"})


@dataclass(frozen=True)
class CallSite:
    """One call. ``callback`` is 0 where the code passes a variable.

    ``schedules`` is False where the bottom half is only made, to be scheduled by
    ``qemu_bh_schedule()`` later.
    """

    address: int
    name: str
    callback: int
    schedules: bool


@dataclass(frozen=True)
class Section:
    """A section of the program: run-time address and bytes, as the file has them."""

    start: int
    data: bytes

    def holds(self, address: int) -> bool:
        return self.start <= address < self.start + len(self.data)


class CallSites:
    """Every call with a bottom half's name, in one pass over the program's code."""

    def __init__(self, program: Disassembly, code: Section, strings: Section) -> None:
        """``code`` and ``strings`` are .text and .rodata."""
        self._program = program
        self._code = code
        self._strings = strings
        self.sites = self._find()

    def names(self) -> set[str]:
        return {site.name for site in self.sites}

    def of(self, name: str) -> list[CallSite]:
        return [site for site in self.sites if site.name == name]

    def _find(self) -> list[CallSite]:
        callees: dict[int, tuple[str, str, bool]] = {}
        for functions, schedules in ((SCHEDULES, True), (CREATES, False)):
            for function, registers in functions.items():
                address = self._program.address(function)
                if address is not None:
                    callees[address] = (*registers, schedules)
        found = []
        for address, callee in self._calls(callees):
            name_register, cb_register, schedules = callees[callee]
            text = self._argument(name_register, address, self._strings)
            name = self._name(text) if text else ""
            if name:
                callback = self._argument(cb_register, address, self._code) or 0
                found.append(CallSite(address, name, callback, schedules))
        return found

    def _calls(self, callees: dict[int, tuple[str, str, bool]]) -> list[tuple[int, int]]:
        """Bytes that read as a direct call or jump to one of them: address, callee."""
        found = []
        for match in re.finditer(rb"[\xe8\xe9](?=(.{4}))", self._code.data, re.DOTALL):
            at = self._code.start + match.start()
            target = at + 5 + struct.unpack("<i", match[1])[0]
            if target in callees:
                found.append((at, target))
        return found

    def _argument(self, register: str, call: int, section: Section) -> int | None:
        """The address in ``section`` that a register holds at a call: of the nearest lea."""
        end = call - self._code.start
        for match in reversed(list(_LEA.finditer(self._code.data, max(end - REACH, 0), end))):
            lea = self._code.start + match.start()
            loaded = lea + 7 + int(struct.unpack("<i", match[1])[0])
            if section.holds(loaded) and register in self._holders(lea, call):
                return loaded
        return None

    def _holders(self, lea: int, call: int) -> set[str]:
        """The registers that hold what the lea loaded when control falls through to the call."""
        # Few instructions are as short as two bytes; decoding is what costs.
        code = self._program.instructions(lea, min(STEPS, (call - lea) // 2 + 1))
        holders = {code[0].register(0)} if code else set()
        following = lea
        for i in code:
            if i.address < following:
                continue
            if i.address != following or not holders:
                break
            if i.address == call:
                return holders
            following = i.address + i.size
            if i.is_call:
                holders &= frozenset(CALLEE_SAVED_NAMES)
            elif i.mnemonic == "jmp" and i.target > i.address:
                following = i.target
            elif i.mnemonic in ("jmp", "ret", "ud2"):
                break
            elif i.mnemonic == "mov" and i.register(1) in holders:
                holders |= {i.register(0)} - {""}
            elif i.address != lea and i.mnemonic not in _READS:
                holders -= {i.register(0)}
        return set()

    def _name(self, address: int) -> str:
        match = _NAME.match(self._strings.data, address - self._strings.start)
        return match[0][:-1].decode("ascii") if match else ""
