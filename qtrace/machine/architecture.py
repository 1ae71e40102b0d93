"""What depends on the processor, in one interface: each processor is one module that fills it in
(``arch_x86_64``, ``arch_aarch64``), and what its instructions mean stands behind
``qtrace.binary.instruction_set``.

Whatever reads a file, a core or a copied stack takes the one of the file (``Elf.architecture``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Code = Callable[[int, int], bytes]
"""The code at an address, so many bytes; fewer where there are none."""


@dataclass(frozen=True)
class SystemCall:
    """What a thread sleeps in; ``arguments`` are its six."""

    number: int
    arguments: tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """Registers are known by their numbers in DWARF, and by the names that debuggers use.

    Attributes:
        name: as people write it.
        elf_machine: e_machine, as pyelftools spells it.
        pc: the number by which unwinding keeps the address of an instruction.
        return_address: the column of unwind rules that has a frame's return address.
        callee_saved: what a call keeps, apart from the stack pointer.
        thread_pointer_name, thread_header: so many bytes from there on are the C library's own; a
            program's thread-local variables lie elsewhere.
        numbers: of the names of what unwinding follows, pc and stack pointer included.
        arguments: those that are passed in registers.
        argument_names, result_name: of a call.
        caller_saved_names: what a call loses.
        pushes_return_address: a call leaves it just below the caller's frame (else in a register).
        keeps_order: loads are done in their order, and so are stores, as all others see it.
        prstatus: struct user_regs_struct, as a core's NT_PRSTATUS has it, word by word.
        kept_thread_pointer: the one of these that is the thread pointer; empty where a note of
            its own has it (NT_ARM_TLS).
        system_calls: names by number.
        sleeps_in: what a thread of a core sleeps in, from its registers (``prstatus``) and the
            code there; None where these do not show that it does.
        call_size: the longest call instruction, in bytes.
        follows_a_call: whether the (up to ``call_size``) bytes before an address end in a call, as
            they do before a return address. A frame that makecontext() built returns to a place
            that no call precedes: that is how the end of a coroutine's stack shows.
        context_calls: how far behind its start a function of the C library that makecontext() lets
            a coroutine begin with goes on after its call, where it makes one; empty where it does
            not.
        called: where the direct call goes that these bytes, which end at an address, end in.
        stub_size, jump_slot: where the address lies that a stub of the PLT jumps to: of its first
            bytes and its address; None where it is no stub.
        nothing: the code of a function that does nothing; a probe at its start costs no step.
        breakpoints: what a uprobe, or a debugger's breakpoint, puts at an instruction's beginning.
        code_address: a return address without the signature that it may bear.
        jump_buffer: the words of glibc's jmp_buf, "" for what is of no use.
        mangled: those of them that glibc hides, and
        demangle: how, by the process's pointer guard.
    """

    name: str
    elf_machine: str
    pc: int
    stack_pointer: int
    frame_pointer: int
    return_address: int
    callee_saved: tuple[int, ...]
    arguments: tuple[int, ...]
    numbers: Mapping[str, int]
    pc_name: str
    stack_pointer_name: str
    thread_pointer_name: str
    thread_header: int
    argument_names: tuple[str, ...]
    result_name: str
    callee_saved_names: tuple[str, ...]
    caller_saved_names: tuple[str, ...]
    pushes_return_address: bool
    keeps_order: bool
    prstatus: tuple[str, ...]
    kept_thread_pointer: str
    system_calls: Mapping[int, str]
    sleeps_in: Callable[[Mapping[str, int], Code], SystemCall | None]
    call_size: int
    follows_a_call: Callable[[bytes], bool]
    context_calls: tuple[int, ...]
    called: Callable[[bytes, int], int | None]
    stub_size: int
    jump_slot: Callable[[bytes, int], int | None]
    nothing: bytes
    breakpoints: tuple[bytes, ...]
    code_address: Callable[[int], int]
    jump_buffer: tuple[str, ...]
    mangled: frozenset[str]
    demangle: Callable[[int, int], int]

    def register_offset(self, name: str) -> int:
        """Where struct pt_regs, as a BPF program sees it, has a register: as ``prstatus`` does.

        Raises ValueError.
        """
        return 8 * self.prstatus.index(name)

    def call_number(self, name: str) -> int:
        """The number of a system call. Raises KeyError."""
        for number, known in self.system_calls.items():
            if known == name:
                return number
        raise KeyError(name)
