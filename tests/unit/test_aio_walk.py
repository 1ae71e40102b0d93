"""QEMU's lists over a memory of ours: what is true is read, what is torn is not."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from qtrace.machine.arch_x86_64 import X86_64
from qtrace.machine.thread_pointer import thread_pointer
from qtrace.qemu.aio.consistent_lists import Torn
from qtrace.qemu.aio.gather import Gathering
from qtrace.qemu.aio.jump_buffer import guard_of_auxv, saved_registers
from qtrace.qemu.aio.layout import Layout
from qtrace.qemu.aio.walk import AioReader, Missing

LAYOUT = Layout(
    main_variable=0x100, iohandler_variable=0x108, context_tls=-0x20, jobs=0x118, bql=0x140,
    ctx_bh_list=0xA8, ctx_bh_slice_list=0xB0, ctx_aio_handlers=0x90,
    bh_flags=0x28, bh_next=0x20, bh_cb=0x10, bh_opaque=0x18,
    handler_next=0x40, handler_deleted=0x68, handler_io_read=8, handler_io_write=0x10,
    handler_opaque=0x38, rcu_reader_tls=-0x40, rcu_gp_ctr=0x150,
    job_next=0xF0, job_co=0x10, job_status=0x7C, job_driver=8, driver_type=8,
)  # fmt: skip
MAIN, IOHANDLER, OWN = 0x10000, 0x11000, 0x12000
FUNCTIONS = 0xF00D


class Bytes:
    """A memory of 256 KiB; ``before_read`` may change it at any read."""

    def __init__(self) -> None:
        self.data = bytearray(1 << 18)
        self.before_read: Callable[[], None] = lambda: None

    def read(self, address: int, size: int) -> bytes:
        self.before_read()
        return bytes(self.data[address : address + size])

    def words(self, address: int, *values: int) -> None:
        struct.pack_into(f"<{len(values)}Q", self.data, address, *values)

    def half(self, address: int, ctx: int, following: int = 0, flags: int = 3) -> None:
        self.words(address, ctx, 0x300, 0x9999, 0x55, following, flags)


@pytest.fixture
def memory() -> Bytes:
    memory = Bytes()
    memory.words(0x100, MAIN, IOHANDLER)
    memory.data[0x300:0x310] = b"do_a_thing_bh".ljust(16, b"\0")
    for ctx in (MAIN, IOHANDLER, OWN):
        memory.words(ctx + 0x10, FUNCTIONS)
    return memory


@pytest.fixture
def reader(memory: Bytes) -> AioReader:
    return AioReader(memory, LAYOUT)


def test_contexts_are_the_main_loops_and_those_of_threads(memory: Bytes, reader: AioReader) -> None:
    memory.words(0x2000 - 0x20, OWN)
    memory.words(0x3000 - 0x20, 0x13000)  # points to no AioContext
    found = reader.contexts(7, {8: 0x2000, 9: 0x3000}, {8: "IO io0"})
    assert [(c.address, c.name, c.tid) for c in found] == [
        (MAIN, "main", 7), (IOHANDLER, "iohandler", 7), (OWN, "iothread:io0", 8),
    ]  # fmt: skip


def test_an_iothreads_id_is_its_sources_name(memory: Bytes, reader: AioReader) -> None:
    memory.words(OWN + 0x50, 0x400)
    memory.data[0x400:0x420] = b"IO disk 0 aio-context".ljust(32, b"\0")
    memory.words(0x2000 - 0x20, OWN)
    assert [c.name for c in reader.contexts(7, {8: 0x2000})][2:] == ["iothread:disk 0"]


def test_open_slices_come_before_the_list(memory: Bytes, reader: AioReader) -> None:
    memory.words(MAIN + 0xA8, 0x5000)
    memory.half(0x5000, MAIN, flags=11)
    memory.words(MAIN + 0xB0, 0x6000)
    memory.words(0x6000, 0x5100, 0x6100)
    memory.half(0x5100, MAIN, 0x5200)
    memory.half(0x5200, MAIN, flags=1)
    memory.words(0x6100, 0x5300, 0)
    memory.half(0x5300, MAIN, flags=5)
    found = reader.bottom_halves(MAIN)
    assert [h.address for h in found] == [0x5100, 0x5200, 0x5300, 0x5000]
    assert [h.in_slice for h in found] == [True, True, True, False]
    assert [h.will_run for h in found] == [True, False, False, True]
    assert found[3].flag_names == "PENDING|SCHEDULED|ONESHOT"
    assert {(h.name, h.cb, h.opaque) for h in found} == {("do_a_thing_bh", 0x9999, 0x55)}


@pytest.mark.parametrize("damage", ["other context", "not pending", "flags", "no callback", "loop"])
def test_what_cannot_be_true_is_torn(memory: Bytes, reader: AioReader, damage: str) -> None:
    memory.words(MAIN + 0xA8, 0x5000)
    memory.half(0x5000, MAIN)
    if damage == "other context":
        memory.half(0x5000, IOHANDLER)
    elif damage == "not pending":
        memory.half(0x5000, MAIN, flags=2)
    elif damage == "flags":
        memory.half(0x5000, MAIN, flags=0x103)
    elif damage == "no callback":
        memory.words(0x5010, 0)
    else:
        memory.half(0x5000, MAIN, 0x5000)
    with pytest.raises(Torn):
        reader.bottom_halves(MAIN)


def test_a_list_that_settles_is_read_as_it_is_then(memory: Bytes, reader: AioReader) -> None:
    changes = iter(range(20))

    def change() -> None:
        number = next(changes, None)
        if number is not None:
            memory.words(MAIN + 0xA8, 0x5000 if number % 2 else 0x5100)

    memory.half(0x5000, MAIN)
    memory.half(0x5100, 0xBAD)
    memory.before_read = change
    assert [h.address for h in reader.bottom_halves(MAIN)] == [0x5000]


def test_a_list_that_never_settles_is_torn(memory: Bytes, reader: AioReader) -> None:
    count = 0

    def change() -> None:
        nonlocal count
        count += 1
        memory.words(MAIN + 0xA8, 0x5000)
        memory.half(0x5000, MAIN, flags=3)
        memory.words(0x5018, count)

    memory.before_read = change
    with pytest.raises(Torn):
        reader.bottom_halves(MAIN)


def test_handlers_are_checked_by_their_back_pointers(memory: Bytes, reader: AioReader) -> None:
    def node(address: int, fd: int, following: int, place: int) -> None:
        struct.pack_into("<iH", memory.data, address, fd, 1)
        memory.words(address + 8, 0x9001, 0x9002)
        memory.words(address + 0x38, 0x77)
        memory.words(address + 0x40, following, place)

    memory.words(MAIN + 0x90, 0x7000)
    node(0x7000, 5, 0x7100, MAIN + 0x90)
    node(0x7100, 6, 0, 0x7040)
    found = reader.handlers(MAIN)
    assert [(h.fd, h.io_read, h.io_write, h.opaque, h.deleted) for h in found] == [
        (5, 0x9001, 0x9002, 0x77, False), (6, 0x9001, 0x9002, 0x77, False),
    ]  # fmt: skip
    node(0x7100, 6, 0, 0x1234)
    with pytest.raises(Torn):
        reader.handlers(MAIN)


def test_jobs_bear_qapis_names(memory: Bytes, reader: AioReader) -> None:
    memory.words(0x118, 0x8000)
    memory.words(0x8000, 0x300, 0x8800, 0xC0)
    memory.words(0x8000 + 0xF0, 0, 0x118)
    memory.words(0x8808, 7)
    struct.pack_into("<I", memory.data, 0x807C, 2)
    (job,) = reader.jobs()
    assert (job.id, job.kind, job.status, job.co) == (
        "do_a_thing_bh", "snapshot-save", "running", 0xC0,
    )  # fmt: skip


def test_a_new_jobs_id_may_lie_where_an_old_ones_did(memory: Bytes, reader: AioReader) -> None:
    memory.words(0x118, 0x8000)
    memory.words(0x8000, 0x600, 0x8800, 0xC0)
    memory.words(0x8000 + 0xF0, 0, 0x118)
    memory.data[0x600:0x606] = b"snap0\0"
    assert [job.id for job in reader.jobs()] == ["snap0"]
    memory.data[0x600:0x606] = b"snap1\0"
    assert [job.id for job in reader.jobs()] == ["snap1"]


def test_memory_that_has_gone_holds_no_contexts(memory: Bytes, reader: AioReader) -> None:
    memory.data.clear()
    assert (reader.main(), reader.iohandler(), reader.dark(7, {7: 0x1000, 8: 0x2000})) == (
        0,
        0,
        [8],
    )
    assert not reader.is_context(MAIN)
    with pytest.raises(Torn):
        reader.contexts(7, {8: 0x2000})


def test_the_bqls_holder_is_its_mutexs_owner(memory: Bytes, reader: AioReader) -> None:
    assert reader.bql_holder() == 0
    struct.pack_into("<III", memory.data, 0x140, 1, 0, 4711)
    assert reader.bql_holder() == 4711


def test_who_reads_under_rcu_since_before_the_grace_period_is_waited_for(
    memory: Bytes, reader: AioReader
) -> None:
    before, since, idle = 0x2000, 0x2100, 0x2200
    memory.words(0x150, 7)
    memory.words(before - 0x40, 5)
    memory.words(since - 0x40, 7)
    assert reader.rcu_readers({1: before, 2: since, 3: idle}) == [1]


def test_a_missing_fact_is_named(memory: Bytes) -> None:
    reader = AioReader(memory, Layout(main_variable=0x100))
    assert [c.name for c in reader.contexts(7, {})] == ["main"]
    with pytest.raises(Missing) as missing:
        reader.bottom_halves(MAIN)
    assert missing.value.fact == "bh_next"


@pytest.mark.parametrize("header", [0x2C0, 0x2C8, 0x2F8])
def test_a_threads_robust_list_leads_to_its_descriptor(memory: Bytes, header: int) -> None:
    memory.words(0x20040, 0x20040, 0, 0x20040)
    struct.pack_into("<I", memory.data, 0x20040 + header + 0x10, 11)
    robust = 0x20040 + header + 0x20
    assert thread_pointer(memory, robust, 11) == 0x20040
    assert thread_pointer(memory, robust, 12) is None
    for elsewhere in (0, 8, 0x30000, 1 << 63):
        assert thread_pointer(memory, elsewhere, 11) is None


def test_what_lies_nobody_knows_where_is_none(memory: Bytes) -> None:
    known = {"main_variable": 0x100, "ctx_bh_list": 0xA8, "bh_flags": 0x28, "bh_next": 0x20}
    lists = {"ctx_aio_handlers": 0x90, "handler_next": 0x40, "jobs": 0x118, "job_next": 0xF0}
    reader = AioReader(memory, Layout(**known, **lists))
    memory.words(MAIN + 0xA8, 0x5000)
    memory.half(0x5000, MAIN)
    (half,) = reader.bottom_halves(MAIN)
    assert (half.name, half.cb, half.opaque) == ("do_a_thing_bh", None, None)
    assert half.label == "do_a_thing_bh"
    assert replace(half, name="").label == "bh@0x5000"
    memory.words(MAIN + 0x90, 0x7000)
    memory.words(0x7000, 5, 0x9001, 0x9002)
    memory.words(0x7040, 0, MAIN + 0x90)
    (handler,) = reader.handlers(MAIN)
    assert (handler.fd, handler.io_read, handler.opaque, handler.deleted) == (5, None, None, None)
    memory.words(0x118, 0x8000)
    memory.words(0x80F0, 0, 0x118)
    assert [job.co for job in reader.jobs()] == [None]


def test_a_look_tells_lists_that_cannot_be_read_from_empty_ones(memory: Bytes) -> None:
    without = replace(LAYOUT, ctx_aio_handlers=None, jobs=None)
    lists = Gathering(AioReader(memory, without), ())
    contexts = lists.contexts(7, {}, {})
    assert lists.bottom_halves(contexts) == lists.handlers(contexts) == ()
    assert (lists.unread, lists.unread_handlers) == ([], [MAIN, IOHANDLER])
    assert lists.one(AioReader(memory, without).jobs) is None
    assert lists.missing == {"ctx_aio_handlers", "jobs"}


def test_a_jmp_buf_is_demangled(memory: Bytes) -> None:
    guard = 0x1122334455667788

    def mangle(value: int) -> int:
        value ^= guard
        return (value << 17 | value >> 47) & (1 << 64) - 1

    memory.words(0x9000 + 0x68, 1, mangle(2), 3, 4, 5, 6, mangle(0x7FFD), mangle(0x401000))
    registers = saved_registers(memory, 0x9000, 0x68, guard, X86_64)
    assert registers == {"rbx": 1, "rbp": 2, "r12": 3, "r13": 4, "r14": 5, "r15": 6,
                         "rsp": 0x7FFD, "rip": 0x401000}  # fmt: skip
    assert X86_64.demangle(mangle(0x1234), guard) == 0x1234
    memory.words(0x1000, 1, guard)
    assert guard_of_auxv(memory, struct.pack("<6Q", 3, 0x40, 25, 0x1000, 0, 0)) == guard
    assert guard_of_auxv(memory, b"") is None
