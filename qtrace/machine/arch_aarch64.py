"""aarch64: registers, argument order, call encodings (AAPCS64; DWARF for the Arm 64-bit
Architecture). QEMUs for it are read on other machines; nothing here ran on such hardware.
"""

from __future__ import annotations

from collections.abc import Mapping

from qtrace.machine.architecture import Architecture, Code, SystemCall
from qtrace.machine.syscalls import GENERIC_NAMES, INTERRUPTED

# DWARF register numbers: x0 to x30 have their own.
X0, X19, FP, LR, SP, PC = 0, 19, 29, 30, 31, 32
NAMES = (*(f"x{number}" for number in range(31)), "sp", "pc")
CALLEE_SAVED = tuple(range(X19, LR))
ARGUMENTS = 8
# What the procedure-call standard leaves to linkers and systems (x16 to x18) is lost, too.
CALLER_SAVED_NAMES = (*NAMES[:X19], "x30")

# struct user_pt_regs (asm/ptrace.h), in NT_PRSTATUS and as a BPF program sees it.
PT_REGS = (*NAMES, "pstate")
SYSCALL_ARGUMENTS = NAMES[:6]
SYSCALL_NUMBER = "x8"
# svc #0.
SYSCALL_INSTRUCTION = b"\x01\x00\x00\xd4"
# brk #5 (asm/brk-imm.h: UPROBES_BRK_IMM), and gdb's brk #0.
UPROBE, BREAKPOINT = b"\xa0\x00\x20\xd4", b"\x00\x00\x20\xd4"

# User addresses have 48 bits unless a program asks for more (Documentation/arch/arm64/memory.rst);
# above them a signed return address has its signature (-mbranch-protection).
ADDRESS_BITS = 48
# adrp x16, page; ldr x17, [x16, #x]; bti c may stand before them.
STUB_SIZE = 12
BTI_C = b"\x5f\x24\x03\xd5"


def code_address(address: int) -> int:
    """A return address without its signature."""
    return address & (1 << ADDRESS_BITS) - 1


def follows_a_call(code: bytes) -> bool:
    """Whether the 4 bytes before an address are bl, blr, or blr with a signature (blraa, ...)."""
    if len(code) < 4:
        return False
    word = int.from_bytes(code[-4:], "little")
    return word >> 26 == 0x25 or word & 0xFEFFF000 == 0xD63F0000


def called(code: bytes, end: int) -> int | None:
    """Where a ``bl`` goes that ends at an address."""
    if len(code) < 4:
        return None
    word = int.from_bytes(code[-4:], "little")
    return end - 4 + 4 * _signed(word, 26) if word >> 26 == 0x25 else None


def jump_slot(code: bytes, address: int) -> int | None:
    """Where the address lies that a stub of the PLT jumps to."""
    stub = code.removeprefix(BTI_C)
    if len(stub) < 8:
        return None
    page, load = (int.from_bytes(stub[at : at + 4], "little") for at in (0, 4))
    if page & 0x9F00001F != 0x90000010 or load & 0xFFC003FF != 0xF9400211:
        return None
    pages = _signed(page >> 3 & 0x1FFFFC | page >> 29 & 3, 21)
    at = address + len(code) - len(stub)
    return (at & -4096) + (pages << 12) + 8 * (load >> 10 & 0xFFF)


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> bits - 1 else value


def sleeps_in(registers: Mapping[str, int], code: Code) -> SystemCall | None:
    """The kernel sets a thread that a signal interrupted back to its ``svc``, with its arguments,
    before the signal stops or ends the process (do_signal() of arch/arm64/kernel/signal.c). Of a
    call that is not made anew x0 has the result instead of the first argument."""
    number, pc = registers[SYSCALL_NUMBER], registers["pc"]
    arguments = tuple(registers[name] for name in SYSCALL_ARGUMENTS)
    if code(pc, 4) == SYSCALL_INSTRUCTION:
        return SystemCall(number, arguments)
    result = arguments[0] - (1 << 64) if arguments[0] >> 63 else arguments[0]
    if code(pc - 4, 4) == SYSCALL_INSTRUCTION and result in INTERRUPTED:
        return SystemCall(number, (0, *arguments[1:]))
    return None


AARCH64 = Architecture(
    name="aarch64",
    elf_machine="EM_AARCH64",
    pc=PC,
    stack_pointer=SP,
    frame_pointer=FP,
    return_address=LR,
    callee_saved=CALLEE_SAVED,
    arguments=tuple(range(ARGUMENTS)),
    numbers={NAMES[number]: number for number in (*CALLEE_SAVED, LR, SP, PC)},
    pc_name="pc",
    stack_pointer_name="sp",
    thread_pointer_name="tpidr_el0",
    # tcbhead_t; variables lie above.
    thread_header=16,
    argument_names=NAMES[:ARGUMENTS],
    result_name="x0",
    callee_saved_names=NAMES[X19:LR],
    caller_saved_names=CALLER_SAVED_NAMES,
    pushes_return_address=False,
    keeps_order=False,
    prstatus=PT_REGS,
    kept_thread_pointer="",
    system_calls=GENERIC_NAMES,
    sleeps_in=sleeps_in,
    call_size=4,
    follows_a_call=follows_a_call,
    # __startcontext() of glibc 2.41: bti c; blr x20.
    context_calls=(4, 8),
    called=called,
    stub_size=STUB_SIZE,
    jump_slot=jump_slot,
    # nop; ret
    nothing=bytes.fromhex("1f2003d5c0035fd6"),
    breakpoints=(UPROBE, BREAKPOINT),
    code_address=code_address,
    # glibc's jmpbuf-offsets.h: x19 to x29, x30, nothing, sp; x30 and sp are mangled.
    jump_buffer=(*NAMES[X19:LR], "pc", "", "sp"),
    mangled=frozenset({"pc", "sp"}),
    demangle=lambda value, guard: value ^ guard,
)
