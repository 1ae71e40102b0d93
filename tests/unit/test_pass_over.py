"""The effects that are set in place of a step: each instruction is run by the processor too."""

from __future__ import annotations

import ctypes
import mmap

import pytest

from qtrace.gdb.instruction_effect import describe

AT = 0x401000
EFFECTS = {
    "push rbx": (b"\x53", {"next": AT + 1, "push": "rbx"}),
    "push r15": (b"\x41\x57", {"next": AT + 2, "push": "r15"}),
    "call": (b"\xe8\x10\x00\x00\x00", {"next": AT + 0x15, "push": AT + 5}),
    "jmp": (b"\xe9\xf0\xff\xff\xff", {"next": AT - 11}),
    "short jmp": (b"\xeb\x02", {"next": AT + 4}),
    "ret": (b"\xc3", {"next": None}),
    "endbr64": (b"\xf3\x0f\x1e\xfa", {"next": AT + 4}),
    "mov rdx, rbx": (b"\x48\x89\xda", {"next": AT + 3, "set": {"rdx": "rbx"}}),
    "mov esi, 1": (b"\xbe\x01\x00\x00\x00", {"next": AT + 5, "set": {"rsi": 1}}),
    "mov esi, -1": (b"\xbe\xff\xff\xff\xff", {"next": AT + 5, "set": {"rsi": 0xFFFFFFFF}}),
    "mov r9d, 7": (b"\x41\xb9\x07\x00\x00\x00", {"next": AT + 6, "set": {"r9": 7}}),
}
OTHERS = {
    "sub rsp, 8, which sets flags": b"\x48\x83\xec\x08",
    "mov esi, edi, which clears the upper half": b"\x89\xfe",
    "mov rax, [rdi]": b"\x48\x8b\x07",
    "mov [rdi], 1": b"\xc7\x07\x01\x00\x00\x00",
    "push 16 bits": b"\x66\x53",
    "push [rdi]": b"\xff\x37",
    "call rax": b"\xff\xd0",
    "je": b"\x74\x02",
    "ret 8": b"\xc2\x08\x00",
    "nothing": b"",
    "no instruction": b"\x06",
}


@pytest.mark.parametrize("name", EFFECTS)
def test_the_effect_of_an_instruction_is_told(name: str) -> None:
    code, effect = EFFECTS[name]
    assert describe(code + b"\x90" * 8, AT) == effect


@pytest.mark.parametrize("name", OTHERS)
def test_gdb_steps_through_any_other_instruction(name: str) -> None:
    assert describe(OTHERS[name], AT) is None


@pytest.mark.parametrize(("code", "register"), [(b"\xb8\xff\xff\xff\xff", "rax")])
def test_the_processor_agrees_about_the_upper_half(code: bytes, register: str) -> None:
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(b"\x48\xc7\xc0\xff\xff\xff\xff" + code + b"\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    run = ctypes.CFUNCTYPE(ctypes.c_uint64)(address)
    effect = describe(code, AT)
    assert effect is not None
    assert run() == effect["set"][register]
