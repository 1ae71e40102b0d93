"""Damaged binaries and senseless stacks: an error of ours or an answer, never a crash."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.errors import QtraceError
from qtrace.machine.arch_x86_64 import RBP, RETURN_ADDRESS, RSP, X86_64
from qtrace.process.maps import AddressSpace
from qtrace.process.stack import MAX_FRAMES, CopiedStack, Unwinder
from qtrace.sites.scanner import scan_binary

BINARY = Path(shutil.which("true") or "/bin/true").read_bytes()
SPACE = AddressSpace(os.getpid())

words = st.integers(0, (1 << 64) - 1)


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    damage=st.lists(
        st.tuples(st.integers(0, len(BINARY) - 1), st.binary(min_size=1, max_size=8)),
        min_size=1, max_size=8,
    ),
    header=st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 255)), max_size=8),
    length=st.one_of(st.just(len(BINARY)), st.integers(0, len(BINARY))),
)  # fmt: skip
# Debian 12's: the length of the build id's note becomes hundreds of bytes.
@example(damage=[(861, b"\x01")], header=[], length=35664)
def test_a_damaged_binary_is_read_or_refused(
    damage: list[tuple[int, bytes]],
    header: list[tuple[int, int]],
    length: int,
) -> None:
    data = bytearray(BINARY)
    for at, new in damage:
        data[at : at + len(new)] = new
    for at, byte in header:
        data[at] = byte
    path = Path(f"/dev/shm/qtrace-test-{os.getpid()}")
    path.write_bytes(data[:length])
    try:
        module = Module(Elf(path), 0)
        _ = (module.elf.build_id, module.elf.code_hash)
        for start in module.frames.starts[:20]:
            module.frames.rule(int(start))
            module.symbols.lookup(int(start))
        scan_binary(module, "")
    except QtraceError:
        pass
    finally:
        path.unlink()


@settings(max_examples=300)
@given(
    stack=st.lists(st.one_of(words, st.integers(0x1000, 0x1400)), max_size=128),
    offset=st.integers(0, 1 << 20),
    module=st.integers(0, 1 << 30),
    frame_pointer=words,
)
def test_a_senseless_stack_ends_and_is_named(
    stack: list[int], offset: int, module: int, frame_pointer: int
) -> None:
    unwinder = Unwinder(SPACE, X86_64)
    start = SPACE._starts[module % len(SPACE._starts)]
    memory = CopiedStack(0x1000, struct.pack(f"<{len(stack)}Q", *stack))
    chain = unwinder.unwind(
        {RETURN_ADDRESS: start + offset, RSP: 0x1000, RBP: frame_pointer}, memory.word
    )
    assert 1 <= len(chain.frames) <= MAX_FRAMES
    assert len(unwinder.names(chain)) == len(chain.frames)
    assert all(unwinder.names(chain))
