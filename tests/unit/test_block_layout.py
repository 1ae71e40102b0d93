"""The block layer's layout from its own code, and what is made of damaged lists."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.binary.module_code import ModuleDisassembly
from qtrace.machine.arch_x86_64 import X86_64
from qtrace.qemu.aio.consistent_lists import Torn
from qtrace.qemu.aio.instructions import Instruction
from qtrace.qemu.block.block_calibration import calibrate
from qtrace.qemu.block.block_layout import BlockLayout
from qtrace.qemu.block.graph import GraphReader


@pytest.mark.qemu
def test_every_fact_is_found_in_a_distributions_binary(qemu_binary: Path) -> None:
    layout = calibrate(ModuleDisassembly(Module(Elf(qemu_binary), 0)))
    assert layout.missing() == []
    # By the headers of QEMU 7.2 to 11.1 alike.
    assert (layout.node_driver, layout.node_opaque, layout.node_context) == (0x10, 0x18, 0x20)
    assert (layout.request_next, layout.request_co) == (0x30, 0x40)
    assert (layout.backend_name, layout.backend_root, layout.backend_next) == (0, 0x10, 0x28)
    assert (layout.child_next, layout.driver_name, layout.mutex_holder) == (0x40, 0, 0x28)
    # `paused`, which is not exported, lies between.
    assert layout.job_user_paused == (layout.job_pause_count or 0) + 6


@pytest.mark.qemu
@pytest.mark.parametrize("program", ["qemu-img", "qemu-nbd", "qemu-storage-daemon"])
def test_programs_without_a_guest_lack_what_belongs_to_it(program: str) -> None:
    path = Path("/usr/bin") / program
    if not path.exists():
        pytest.skip(f"{program} is not installed")
    missing = calibrate(ModuleDisassembly(Module(Elf(path), 0))).missing()
    assert all(fact.startswith(("run_state", "migration", "export")) for fact in missing)


def test_without_code_every_fact_is_missing_by_name() -> None:
    assert calibrate(_Nothing()) == BlockLayout()


# A node at NODE, whose requests lie one after the other from REQUESTS on.
NODE, REQUESTS, SIZE = 0x1000, 0x4000, 0x80
LAYOUT = BlockLayout(node_requests=0x100, request_next=0x30, request_co=0x40)


def test_ten_thousand_requests_of_one_node_are_read() -> None:
    memory = _Memory(10_000)
    requests, passing = GraphReader(memory, LAYOUT).requests(NODE)
    assert not passing
    assert [request.offset for request in requests] == list(range(0, 10_000 * 512, 512))
    assert {(r.kind, r.bytes, r.node) for r in requests} == {("write", 512, NODE)}


def test_of_requests_that_come_and_go_those_that_stay_are_shown() -> None:
    memory = _Memory(4)
    memory.before_reading(2, memory.remove_first)
    requests, passing = GraphReader(memory, LAYOUT).requests(NODE)
    assert passing
    assert [request.offset for request in requests] == [512, 1024, 1536]


def test_a_list_that_leads_into_other_memory_is_torn() -> None:
    memory = _Memory(4)
    # The second one's node is another: its stack is in use for something else by now.
    memory.write(REQUESTS + SIZE, struct.pack("<Q", NODE + 8))
    with pytest.raises(Torn, match="requests of node"):
        GraphReader(memory, LAYOUT).requests(NODE)


class _Memory:
    """A node and its requests, as QEMU has them."""

    def __init__(self, count: int) -> None:
        self._bytes = bytearray(REQUESTS + count * SIZE)
        self._readings = 0
        self._then: tuple[int, Callable[[], None]] = (0, lambda: None)
        place = NODE + 0x100
        for number in range(count):
            at = REQUESTS + number * SIZE
            self.write(at, struct.pack("<QqqI", NODE, number * 512, 512, 1))
            self.write(place, struct.pack("<Q", at))
            self.write(at + 0x38, struct.pack("<Q", place))
            place = at + 0x30

    def write(self, address: int, data: bytes) -> None:
        self._bytes[address : address + len(data)] = data

    def before_reading(self, number: int, then: Callable[[], None]) -> None:
        """Each reading of the list begins at the node."""
        self._then = (number, then)

    def remove_first(self) -> None:
        self.write(NODE + 0x100, struct.pack("<Q", REQUESTS + SIZE))
        self.write(REQUESTS + SIZE + 0x38, struct.pack("<Q", NODE + 0x100))

    def read(self, address: int, size: int) -> bytes:
        self._readings += address == NODE
        if address == NODE and self._readings == self._then[0]:
            self._then[1]()
        return bytes(self._bytes[address : address + size])


class _Nothing:
    architecture = X86_64

    def address(self, symbol: str) -> int | None:
        return None

    def instructions(self, address: int, count: int) -> list[Instruction]:
        return []
