"""Damaged cores, lists and code: a look says what is there, or one line why not; never a crash."""

from __future__ import annotations

import json
import os
import random
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.binary.module_code import ModuleDisassembly
from qtrace.cli.views.look_view import look_json, summary
from qtrace.errors import QtraceError
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import Qemu
from qtrace.lab.guest import find_qemu
from qtrace.machine.arch_x86_64 import X86_64
from qtrace.machine.thread_pointer import thread_pointer
from qtrace.process.core_file import CoreFile
from qtrace.process.core_source import CoreSource
from qtrace.qemu.aio.calibration import calibrate
from qtrace.qemu.aio.consistent_lists import Torn
from qtrace.qemu.aio.findings import explain
from qtrace.qemu.aio.inconclusive import unclear
from qtrace.qemu.aio.instructions import Instruction, parse_att
from qtrace.qemu.aio.jump_buffer import saved_registers
from qtrace.qemu.aio.walk import AioReader, Missing
from tests.live.support.gdb_session import core_of
from tests.live.test_gdb_debug_info import like_qemu

SEEDS = st.integers(0, 1 << 32)
many = settings(max_examples=200, suppress_health_check=list(HealthCheck))
# Each of them takes a while; the soak has many.
few = settings(max_examples=60, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def core() -> Iterator[Path]:
    """A core of a small program with structures like QEMU's, beside its executable."""
    with tempfile.TemporaryDirectory(prefix="qtrace-core-") as folder:
        with like_qemu("-O2", Path(folder)) as target:
            core_of(target.pid, target.executable, Path(folder))
        yield Path(folder) / "core"


@pytest.mark.gdb
@many
@given(seed=SEEDS)
def test_a_damaged_core_is_read_or_refused(core: Path, seed: int) -> None:
    generator = random.Random(seed)
    data = bytearray(core.read_bytes())
    # Headers, notes (which lead to all else) or anything.
    notes = data.find(b"CORE\0")
    for _ in range(generator.randint(0, 12)):
        start, size = generator.choice([(0, 64), (64, 2048), (notes - 64, 4096), (0, len(data))])
        at = min(max(start, 0) + generator.randrange(size), len(data) - 1)
        new = generator.choice([b"\0", b"\xff", b"\xff" * 8, generator.randbytes(8)])
        data[at : at + len(new)] = new
    length = generator.choice([len(data), len(data), len(data), generator.randrange(len(data))])
    path = Path(f"/dev/shm/qtrace-core-{os.getpid()}")
    path.write_bytes(data[:length])
    try:
        looker = Looker(Qemu(CoreSource(CoreFile(path), core.with_name("program"))))
        look = looker.look()
        explain(look)
        json.dumps(look_json(look, looker.name, {}))
        unclear(look)
        summary(look, [])
    except QtraceError:
        pass
    finally:
        path.unlink()


class Senseless:
    """256 KiB of words that mostly lead back into it, some of them anew at each read."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        words = [self._word() for _ in range(1 << 15)]
        self._data = bytearray(struct.pack(f"<{len(words)}Q", *words))

    def _word(self) -> int:
        choose = self._random
        near = choose.randrange(0, 1 << 18, 8)
        return choose.choice([near, near, near, 0, 3, choose.getrandbits(64)])

    def read(self, address: int, size: int) -> bytes:
        if self._random.random() < 0.05:
            struct.pack_into("<Q", self._data, self._random.randrange(0, 1 << 18, 8), self._word())
        return bytes(self._data[address : address + size]) if address >= 0 else b""


LAYOUT = calibrate(ModuleDisassembly(Module(Elf(find_qemu()), 0)))


@pytest.mark.qemu
@few
@given(seed=SEEDS)
def test_senseless_memory_is_torn_and_shown_by_nobody(seed: int) -> None:
    check_senseless(seed)


@pytest.mark.soak
@pytest.mark.qemu
@settings(max_examples=2000, suppress_health_check=list(HealthCheck))
@given(seed=SEEDS)
def test_senseless_memory_is_torn_and_shown_by_nobody_2000_times(seed: int) -> None:
    check_senseless(seed)


def check_senseless(seed: int) -> None:
    memory = Senseless(seed)
    places = {"main_variable": 0x100, "iohandler_variable": 0x108, "jobs": 0x110, "bql": 0x118}
    layout = type(LAYOUT)(**{**LAYOUT.__dict__, **places})
    reader = AioReader(memory, layout)
    reads = [reader.jobs, reader.bql_holder]
    assert thread_pointer(memory, 0x1000, 1) in (None, *range(0, 1 << 18, 64))
    for context in reader.contexts(1, {1: 0x1000, 3: 0x2000}):
        for one in (reader.bottom_halves, reader.handlers, reader.scheduled_coroutines):
            reads.append(lambda one=one, ctx=context.address: one(ctx))  # type: ignore[misc]
    for read in reads:
        try:
            found = read()
        except (Torn, Missing):
            continue
        if isinstance(found, list):
            assert len({item.address for item in found}) == len(found)
    assert LAYOUT.co_env is not None
    saved_registers(memory, 0x2000, LAYOUT.co_env, 0x1234, X86_64)


class Mangled(ModuleDisassembly):
    """A QEMU's code with instructions missing, doubled or in another order."""

    def __init__(self, module: Module, seed: int) -> None:
        super().__init__(module)
        self._random = random.Random(seed)

    def address(self, symbol: str) -> int | None:
        return None if self._random.random() < 0.1 else super().address(symbol)

    def instructions(self, address: int, count: int) -> list[Instruction]:
        code = super().instructions(address, count)
        choose = self._random
        for _ in range(choose.randint(0, 8)):
            if code:
                at, to = choose.randrange(len(code)), choose.randrange(len(code))
                moved = code.pop(at)
                code[to:to] = choose.choice([[], [moved], [moved, moved]])
        return code[: choose.choice([count, choose.randint(0, count)])]


MODULE = Module(Elf(find_qemu()), 0)


@pytest.mark.qemu
@many
@given(seed=SEEDS)
def test_mangled_code_leaves_facts_out(seed: int) -> None:
    layout = calibrate(Mangled(MODULE, seed))
    assert all(isinstance(value, (int, str, type(None))) for value in layout.__dict__.values())


@settings(max_examples=500)
@given(text=st.text(alphabet="movlcalq %(),$*0x123456789abcdefgs:<>+#ripdx-", max_size=60))
def test_any_text_of_a_disassembler_is_an_instruction(text: str) -> None:
    assert parse_att(0x1000, 4, text).address == 0x1000
