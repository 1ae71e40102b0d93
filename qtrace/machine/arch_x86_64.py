"""x86-64: registers, argument order, call encodings.

``X86_64`` is what everything takes that reads another architecture's QEMUs, too; the rest is for
what works on this machine alone: records, stops a process or steps it.
"""

from __future__ import annotations

from collections.abc import Mapping

from qtrace.machine.architecture import Architecture, Code, SystemCall
from qtrace.machine.syscalls import NAMES, sleeps

# DWARF register numbers (System V x86-64 psABI, figure 3.36).
RAX, RDX, RCX, RBX, RSI, RDI, RBP, RSP = range(8)
R8, R9, R10, R11, R12, R13, R14, R15 = range(8, 16)
RETURN_ADDRESS = 16

# The order in which probes/watch.bpf.c sends registers is the DWARF order, rip last.
REGISTER_COUNT = 17
REGISTER_NAMES = (
    "rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip",
)  # fmt: skip

ARGUMENTS = (RDI, RSI, RDX, RCX, R8, R9)
# Kept by a call, and lost in one (System V ABI, 3.2.1).
CALLEE_SAVED_NAMES = ("rbx", "rbp", "r12", "r13", "r14", "r15")
CALLER_SAVED_NAMES = ("rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11")
CALLEE_SAVED = tuple(REGISTER_NAMES.index(name) for name in CALLEE_SAVED_NAMES)

# As debuggers spell the registers that survive a call.
DWARF_NUMBERS = {
    "rbx": RBX, "rbp": RBP, "rsp": RSP, "r12": R12, "r13": R13, "r14": R14, "r15": R15,
    "rip": RETURN_ADDRESS,
}  # fmt: skip

# struct user_regs_struct, as a core's NT_PRSTATUS has it.
PRSTATUS_REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx",
    "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds",
    "es", "fs", "gs",
)  # fmt: skip
# struct pt_regs, as a BPF program sees it, begins with the same ones.
PT_REGS = PRSTATUS_REGISTERS[: PRSTATUS_REGISTERS.index("ss") + 1]


SYSCALL_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
# After it a thread in a system call goes on.
SYSCALL_INSTRUCTION = b"\x0f\x05"

PAGE = 4096


def follows_a_call(code: bytes) -> bool:
    """Whether the bytes before a return address end in a call instruction.

    Args:
        code: the (up to) 7 bytes before the address.

    A frame that makecontext() built returns to a place that no call precedes: that is
    how the end of a coroutine's stack shows.
    """
    return (
        code[-5:-4] == b"\xe8"
        or (code[-2:-1] == b"\xff" and 0xD0 <= code[-1] <= 0xD7)
        or (code[-2:-1] == b"\xff" and code[-1] in (0x10, 0x11, 0x12, 0x13, 0x16, 0x17))
        or (code[-3:-2] == b"\xff" and (0x50 <= code[-2] <= 0x57 or code[-2] == 0x14))
        or (code[-4:-3] == b"\xff" and code[-3] == 0x54)
        or (code[-6:-5] == b"\xff" and (0x90 <= code[-5] <= 0x97 or code[-5] == 0x15))
        or (code[-7:-6] == b"\xff" and code[-6] == 0x94)
    )


# `call rel32` and `jmp rel32`, the forms in which compilers call a function of the same file.
CALL_REL32, JMP_REL32 = 0xE8, 0xE9
BREAKPOINT = 0xCC
# The shortest function that a probe costs one trap.
NOP_AND_RETURN = b"\x90\xc3"
# What a function that may be called by its address begins with, where jumps are guarded
# (-fcf-protection).
ENDBR64 = b"\xf3\x0f\x1e\xfa"

# Bytes below the stack pointer that a function may use.
RED_ZONE = 128

# Numbers of system calls (asm/unistd_64.h).
RT_SIGACTION, RESTART_SYSCALL = 13, 219
# perf's numbers of the general registers (asm/perf_regs.h) to DWARF's.
PERF_REGISTERS = {
    0: RAX, 1: RBX, 2: RCX, 3: RDX, 4: RSI, 5: RDI, 6: RBP, 7: RSP, 8: RETURN_ADDRESS,
    **{n: R8 + n - 16 for n in range(16, 24)},
}  # fmt: skip
# What a system call has in rax while a signal interrupts it (linux/errno.h): it is made anew, or
# its rest is.
_ANEW = {-512, -513, -514}
_REST = -516
_WORD = 1 << 64


def is_in_system_call(registers: dict[str, int]) -> bool:
    """Whether a stopped thread (PRSTATUS_REGISTERS) is in one."""
    return registers["orig_rax"] < _WORD // 2


def system_call(registers: dict[str, int], number: int, *arguments: int) -> dict[str, int]:
    """The registers with which a thread begins one, at a SYSCALL_INSTRUCTION."""
    given = dict(zip(SYSCALL_ARGUMENTS, arguments))  # noqa: B905 (3.10)
    return {**registers, **given, "rax": number, "orig_rax": _WORD - 1}


def restarted(registers: dict[str, int]) -> dict[str, int]:
    """The registers of a thread that is stopped in a system call, as the kernel would go on."""
    result = registers["rax"] - _WORD
    if not is_in_system_call(registers) or result not in _ANEW | {_REST}:
        return registers
    number = RESTART_SYSCALL if result == _REST else registers["orig_rax"]
    before = registers["rip"] - len(SYSCALL_INSTRUCTION)
    return {**registers, "rax": number, "rip": before, "orig_rax": _WORD - 1}


# endbr64, bnd, jmp [rip + x].
STUB_SIZE = 11


def jump_slot(code: bytes, address: int) -> int | None:
    """Where the address lies that a stub jumps to (``jmp [rip + x]``); None where it is none.

    Args:
        code: the first ``STUB_SIZE`` bytes at ``address``.
    """
    jump = code.removeprefix(b"\xf3\x0f\x1e\xfa").removeprefix(b"\xf2")
    if len(jump) < 6 or jump[:2] != b"\xff\x25":
        return None
    following = address + len(code) - len(jump) + 6
    return following + int.from_bytes(jump[2:6], "little", signed=True)


def _called(code: bytes, end: int) -> int | None:
    if code[-5:-4] != bytes([CALL_REL32]):
        return None
    return end + int.from_bytes(code[-4:], "little", signed=True)


def _sleeps_in(registers: Mapping[str, int], code: Code) -> SystemCall | None:
    number = registers["orig_rax"]
    arguments = tuple(registers[name] for name in SYSCALL_ARGUMENTS)
    size = len(SYSCALL_INSTRUCTION)
    # Code that is not here cannot speak against the number.
    if number >> 63 or code(registers["rip"] - size, size) not in (SYSCALL_INSTRUCTION, b""):
        return None
    return SystemCall(number, arguments) if sleeps(number, registers["rax"], arguments) else None


def _demangle(value: int, guard: int) -> int:
    """PTR_DEMANGLE of glibc: rotate right by 17, then xor with the guard."""
    return ((value >> 17) | (value << 47)) & _WORD - 1 ^ guard


X86_64 = Architecture(
    name="x86-64",
    elf_machine="EM_X86_64",
    pc=RETURN_ADDRESS,
    stack_pointer=RSP,
    frame_pointer=RBP,
    return_address=RETURN_ADDRESS,
    callee_saved=CALLEE_SAVED,
    arguments=ARGUMENTS,
    numbers=DWARF_NUMBERS,
    pc_name="rip",
    stack_pointer_name="rsp",
    thread_pointer_name="fs_base",
    # tcbhead_t; variables lie below.
    thread_header=0x2C0,
    argument_names=tuple(REGISTER_NAMES[number] for number in ARGUMENTS),
    result_name="rax",
    callee_saved_names=CALLEE_SAVED_NAMES,
    caller_saved_names=CALLER_SAVED_NAMES,
    pushes_return_address=True,
    keeps_order=True,
    prstatus=PRSTATUS_REGISTERS,
    kept_thread_pointer="fs_base",
    system_calls=NAMES,
    sleeps_in=_sleeps_in,
    call_size=7,
    follows_a_call=follows_a_call,
    context_calls=(),
    called=_called,
    stub_size=STUB_SIZE,
    jump_slot=jump_slot,
    nothing=NOP_AND_RETURN,
    breakpoints=(bytes([BREAKPOINT]),),
    code_address=lambda address: address,
    jump_buffer=(*CALLEE_SAVED_NAMES, "rsp", "rip"),
    mangled=frozenset({"rbp", "rsp", "rip"}),
    demangle=_demangle,
)
