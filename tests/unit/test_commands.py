"""Which QMP commands get rows, and that their steps find each other."""

from __future__ import annotations

from typing import Any

from qtrace.machine.arch_x86_64 import RDI, RETURN_ADDRESS, RSI, RSP
from qtrace.process.hit import CANDIDATES, QEMUBH_BYTES, Hit
from qtrace.record.qmp_rows import LONG_NS, Commands
from qtrace.trace.schema import Event

DISPATCHER, OUT_OF_BAND, MAIN = 0x7F0000010000, 0x7F0000900000, 0x7FFF00001000
NAMES = {0x1000: b"query-status\0", 0x2000: (0x1000).to_bytes(8, "little")}


class Strings:
    """Memory that has these bytes at these addresses."""

    def read(self, address: int, size: int) -> bytes:
        return NAMES.get(address, b"")[:size]


class Qemu:
    """Lets one ``Commands`` meet the steps of commands."""

    def __init__(self) -> None:
        module: Any = None
        self.commands = Commands(module, Strings())
        self.now = 1_000

    def step(self, step: str, sp: int, behind: bytes = b"", register: int = RSI,
             pointer: int = 0) -> list[Event]:  # fmt: skip
        self.now += 1
        copied = {register: behind}
        candidates = b"".join(
            copied.get(r, b"")[:QEMUBH_BYTES].ljust(QEMUBH_BYTES, b"\0") for r in CANDIDATES
        )
        registers = {RSP: sp, RDI: 0, RSI: 0, RETURN_ADDRESS: 0x400} | {register: pointer}
        return self.commands.step(step, Hit(self.now, 7, "q", registers, candidates, sp, b""), "")

    def take(self, name: bytes, sp: int = DISPATCHER) -> list[Event]:
        return self.step("command", sp, name + b"\0")

    def begin(self) -> list[Event]:
        dispatched = (0x2000).to_bytes(8, "little") + (0x3000).to_bytes(8, "little")
        return self.step("begin", MAIN, dispatched, RDI, DISPATCHER + 0x40)

    def end(self) -> list[Event]:
        return self.step("end", MAIN)

    def reply(self, sp: int = DISPATCHER) -> list[Event]:
        return self.step("reply", sp + 0x80)


def steps(rows: list[Event]) -> list[tuple[str, str, int]]:
    return [(row.name, row.detail["step"], row.detail["number"]) for row in rows]


def test_a_command_that_is_answered_at_once_is_counted_and_leaves_no_row() -> None:
    qemu = Qemu()
    for _ in range(3):
        assert qemu.take(b"query-status") + qemu.begin() + qemu.end() + qemu.reply() == []
    assert (qemu.commands.taken, qemu.commands.left_out) == (3, 3)
    assert qemu.commands.show() == []


def test_one_during_which_something_happens_has_all_its_rows() -> None:
    qemu = Qemu()
    assert qemu.take(b"snapshot-save") + qemu.begin() == []
    rows = qemu.commands.show() + qemu.end() + qemu.commands.show() + qemu.reply()
    assert steps(rows) == [
        ("snapshot-save", step, 1) for step in ("command", "begin", "end", "reply")
    ]
    assert [row.time_ns for row in rows] == sorted(row.time_ns for row in rows)
    assert rows[1].detail["monitor"] == "0x3000"
    assert qemu.commands.left_out == 0


def test_one_that_takes_long_has_its_rows_before_it_is_answered() -> None:
    qemu = Qemu()
    qemu.take(b"blockdev-del")
    assert qemu.commands.long(qemu.now) == []
    assert steps(qemu.commands.long(qemu.now + LONG_NS + 1)) == [("blockdev-del", "command", 1)]
    assert steps(qemu.reply()) == [("blockdev-del", "reply", 1)]


def test_one_that_is_out_of_band_does_not_mix_with_the_one_that_is_carried_out() -> None:
    qemu = Qemu()
    qemu.take(b"device_add")
    qemu.begin()
    qemu.take(b"yank", OUT_OF_BAND)
    qemu.commands.show()
    assert steps(qemu.reply(OUT_OF_BAND)) == [("yank", "reply", 2)]
    assert steps(qemu.end() + qemu.reply()) == [
        ("device_add", "end", 1),
        ("device_add", "reply", 1),
    ]


def test_a_command_whose_reply_was_never_seen_ends_with_the_next_one() -> None:
    qemu = Qemu()
    qemu.take(b"quit")
    qemu.take(b"query-status")
    qemu.commands.show()
    assert steps(qemu.reply()) == [("query-status", "reply", 2)]
    assert qemu.reply() == []


def test_where_only_its_bottom_half_is_seen_the_name_comes_from_there() -> None:
    qemu = Qemu()
    qemu.begin()
    assert steps(qemu.commands.show()) == [("query-status", "begin", 1)]


def test_a_name_that_was_not_copied_is_read_from_the_process() -> None:
    qemu = Qemu()
    qemu.step("command", DISPATCHER, b"", RSI, 0x1000)
    assert steps(qemu.commands.show()) == [("query-status", "command", 1)]
