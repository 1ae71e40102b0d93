"""QEMUs for aarch64 hosts, read on another machine: Debian's packages, and single instructions."""

from __future__ import annotations

import bisect
import mmap
import os
import re
import shutil
import struct
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from qtrace.binary.cfi import CallFrames
from qtrace.binary.elf import Elf
from qtrace.binary.instruction_set import instruction_set
from qtrace.binary.module import Module
from qtrace.binary.module_code import ModuleDisassembly
from qtrace.binary.steps_aarch64 import atomic_helper
from qtrace.errors import ScanFailed
from qtrace.machine.arch_aarch64 import AARCH64
from qtrace.machine.arch_x86_64 import X86_64
from qtrace.machine.architecture import SystemCall
from qtrace.machine.fence import LIBRARY, fence_of
from qtrace.machine.memory import PAGE
from qtrace.machine.syscalls import GENERIC_NAMES
from qtrace.process.hit import QEMUBH_BYTES
from qtrace.qemu.aio.calibration import calibrate
from qtrace.qemu.aio.flow import follow
from qtrace.qemu.aio.layout import Layout
from qtrace.qemu.block import block_calibration
from qtrace.qemu.block.block_layout import ADDRESSES
from qtrace.record.ebpf.bpf_compiler import LOAD_WORD, compile_image
from qtrace.record.ebpf.bpf_image import INSTRUCTION
from qtrace.record.ebpf.record_ring import RecordRing
from qtrace.sites.all_plan import AllPlan
from qtrace.sites.all_sites import plan_all
from qtrace.sites.scheduler import names_without_schedule
from qtrace.sites.watch import plan_watch
from tests.builds import FOREIGN
from tests.conftest import build
from tests.unit.test_scan import scan_of

JOBS = ("snapshot_save_job_bh", "snapshot_load_job_bh", "snapshot_delete_job_bh")
# How many schedules objdump's listing of each has, and where their code keeps what: in the order of
# the layout's fields, from the second context to the last of JobDriver. glibc's mutex is 8 bytes
# longer than on x86-64, and so is what lies behind one.
SCHEDULES = {"arm64": 18, "arm64-signed": 41}
FACTS = {
    "arm64": Layout(
        0x166E310, 0x166E328, 0x128, 0x158, 0x166B818, 0x163BA30, "x19", 0xB0, 0xB8, 0x98, 0xD8,
        0x28, 0x20, 0x10, 0x18, 0x40, 0x68, 8, 0x10, 0x38, 0x28, 0x10, 0x50, 0x68, 0xF8, 8, 0x10,
        0x84, 8, 0x218, 0xD0, 0x1638B40,
    ),
    "arm64-signed": Layout(
        0x2140B10, 0x2140B28, 0x190, 0x1B8, 0x213DAF8, 0x210FD30, "x19", 0xB8, 0xC0, 0xA0, 0xE0,
        0x28, 0x20, 0x10, 0x18, 0x40, 0x68, 8, 0x10, 0x38, 0x28, 0x10, 0x50, 0x68, 0xF8, 8, 0x10,
        0x84, 8, 0x218, 0x138, 0x210AFC8,
    ),
}  # fmt: skip
# Of both builds, by the version that they were taken from.
VERSIONS = {"arm64": b"7.2.22", "arm64-signed": b"10.0.13"}
# The builds of the same versions for x86-64, and how much farther behind things lie that have
# mutexes before them (in a ThrottleGroup the name lies before the state, the mutex between).
X86_64_OF = {"arm64": "installed", "arm64-signed": "stable"}
BEHIND_MUTEXES = {
    "arm64": {
        "node_in_flight": 8, "node_quiesced": 8, "node_requests": 8, "backend_in_flight": 8,
        "backend_iostatus": 8, "group_name": -8, "job_pause_count": 8, "job_user_paused": 8,
        "job_cancelled": 8, "job_nodes": 16, "migration_state": 24,
    },
    "arm64-signed": {
        "node_in_flight": 8, "node_quiesced": 8, "node_requests": 16, "backend_in_flight": 16,
        "backend_iostatus": 8, "group_name": -8, "job_pause_count": 8, "job_user_paused": 8,
        "job_cancelled": 8, "job_nodes": 16, "migration_state": 24, "context_graph": 8,
    },
}  # fmt: skip


def program(name: str) -> Path:
    found = build(name)
    return found.files / found.system


@pytest.mark.builds
@pytest.mark.parametrize("name", FOREIGN)
def test_every_schedule_is_read_and_all_but_variables_are_named(name: str) -> None:
    scan = scan_of(program(name))
    assert sum(len(half.sites) for half in scan.bottom_halves) == SCHEDULES[name]
    unnamed = [(half.name, len(half.sites)) for half in scan.bottom_halves if not half.watchable]
    assert unnamed == [("cb", 1)]
    assert not [half.name for half in scan.bottom_halves if half.name.startswith("bh@")]
    found = {half.name: half for half in scan.bottom_halves}
    assert [[site.context for site in found[job].sites] for job in JOBS] == [["main"]] * 3
    assert [site.context for site in found["do_qmp_dispatch_bh"].sites] == ["iohandler"]
    assert all(len(found[job].exits) == 1 for job in JOBS)


@pytest.mark.builds
@pytest.mark.parametrize("name", FOREIGN)
def test_without_symbols_the_names_lead_to_the_same_schedules(name: str) -> None:
    known, blind = scan_of(program(name)), scan_of(program(name), symbols=False)
    assert (blind.found_by, blind.scheduler) == ("names", known.scheduler)
    assert [(h.name, h.callback) for h in blind.bottom_halves] == [
        (h.name, h.callback) for h in known.bottom_halves
    ]
    assert blind.context_variables == known.context_variables


@pytest.mark.builds
@pytest.mark.parametrize("name", FOREIGN)
def test_every_fact_of_event_loops_is_found(name: str) -> None:
    elf = Elf(program(name))
    layout = calibrate(ModuleDisassembly(Module(elf, 0)))
    assert layout.missing() == []
    if elf.data.find(VERSIONS[name]) >= 0:
        assert layout == FACTS[name]


@pytest.mark.builds
@pytest.mark.parametrize("name", FOREIGN)
def test_the_block_layer_lies_where_that_of_x86_64_does_but_for_mutexes(name: str) -> None:
    """Of the very version, where it is here. What has no mutex before it lies at the same place."""
    elf, other = Elf(program(name)), Elf(twin_of(name))
    ours = block_calibration.calibrate(ModuleDisassembly(Module(elf, 0)))
    theirs = block_calibration.calibrate(ModuleDisassembly(Module(other, 0)))
    assert ours.missing() == []
    if VERSIONS[name] not in elf.data[:] or VERSIONS[name] not in other.data[:]:
        pytest.skip("not the versions that were compared")
    moved = {
        field.name: getattr(ours, field.name) - getattr(theirs, field.name)
        for field in fields(ours)
        if getattr(ours, field.name) is not None and field.name not in ADDRESSES
    }
    assert {name: by for name, by in moved.items() if by} == BEHIND_MUTEXES[name]


def twin_of(name: str) -> Path:
    found = build(X86_64_OF[name])
    return found.files / found.system


@pytest.mark.builds
def test_the_tables_that_the_linker_fills_in_are_no_variables() -> None:
    """Code reaches a variable that another file may have through the global offset table."""
    code = ModuleDisassembly(Module(Elf(program("arm64")), 0x10000))
    layout = block_calibration.calibrate(code)
    # The stack's guard comes first.
    loads = [step.address(1) for step in follow(code, "bdrv_drain_all_end_quiesce", 8)]
    table = next(place.offset for place in loads if place is not None and place.root is None)
    assert not code.is_variable(table)
    assert layout.nodes is not None
    assert code.is_variable(layout.nodes)


@pytest.mark.builds
@pytest.mark.parametrize("name", FOREIGN)
def test_each_watched_place_takes_a_probe_and_a_call_costs_one_trap(name: str) -> None:
    module = Module(Elf(program(name)), 0)
    code = instruction_set(module.elf)
    for site in plan_watch(scan_of(program(name)), module).sites:
        raw = module.elf.read(site.vaddr, 4)
        (instruction,) = code.decoder().disasm(raw, site.vaddr)
        assert code.takes_probe(instruction), site.label
        assert code.is_simulated(instruction) or not site.callee, site.label


@pytest.mark.builds
@pytest.mark.parametrize("name", FOREIGN)
def test_a_name_that_nothing_was_seen_to_schedule_is_told(name: str) -> None:
    elf, scan = Elf(program(name)), scan_of(program(name))
    found = {half.name for half in scan.bottom_halves}
    assert names_without_schedule(elf, found) == []
    assert names_without_schedule(elf, found - {"job_exit"}) == ["job_exit"]


PROGRAMS = ("qemu-img", "qemu-nbd", "qemu-storage-daemon")


@cache
def planned(build_name: str, program_name: str) -> AllPlan:
    return plan_all(Module(Elf(build(build_name).files / program_name), 0))


def told(plan: AllPlan) -> Counter[tuple[str, str, int]]:
    """What each site is for, in which exported function, and the flags that are set there."""
    names = ((site, *site.where.partition("+")) for site in plan.sites)
    return Counter(
        (site.kind, "" if "@" in name else name, site.new_flags) for site, name, *_rest in names
    )


@pytest.mark.builds
@pytest.mark.qemu
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_sites_of_all_are_in_the_functions_of_x86_64(name: str) -> None:
    """Of the very version, where it is here: each atomic OR, each call of qemu_bh_cancel()."""
    version = VERSIONS["arm64"]
    builds = [build("arm64"), build(X86_64_OF["arm64"])]
    if any(version not in (one.files / name).read_bytes() for one in builds):
        pytest.skip("not the versions that were compared")
    ours, theirs = planned("arm64", name), planned(X86_64_OF["arm64"], name)
    assert told(ours) == told(theirs)
    assert ours.layout == theirs.layout


@pytest.mark.builds
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_site_of_all_costs_one_trap(name: str) -> None:
    elf = Elf(build("arm64").files / name)
    code = instruction_set(elf)
    for site in planned("arm64", name).sites:
        (instruction,) = code.decoder().disasm(elf.read(site.vaddr, 4), site.vaddr)
        assert code.is_simulated(instruction), site
    assert planned("arm64", name).notes == ()


@pytest.mark.builds
def test_every_atomic_or_of_qemubhs_flags_has_its_site() -> None:
    """By the words of the code alone: `bl` to the helper that sets bits of 4 bytes, with the place
    made shortly before (add x1, xn, #0x28, or what moves x1 on by that)."""
    elf = Elf(build("arm64").files / "qemu-img")
    expected = []
    for start, raw in elf.code_bytes():
        words = struct.unpack(f"<{len(raw) // 4}I", raw[: len(raw) // 4 * 4])
        for at, word in enumerate(words):
            if word >> 26 != 0x25:
                continue
            goes_to = AARCH64.called(word.to_bytes(4, "little"), start + 4 * at + 4) or 0
            before = words[at - 8 : at]
            # add x1, xn, #0x28; ldr xt, [x1], #0x28
            makes = any(w & ~0x3E0 == 0x9100A001 or w & ~0x1F == 0xF8428420 for w in before)
            if makes and atomic_helper(elf.read(goes_to, 20)) == ("set", 4):
                expected.append(start + 4 * at + 4)
    found = [s.vaddr for s in planned("arm64", "qemu-img").sites if s.kind == "enqueue"]
    assert found == expected
    assert len(found) == 7


@pytest.mark.builds
def test_where_a_module_cancels_too_the_function_itself_has_a_probe() -> None:
    plan = plan_all(Module(Elf(build("arm64").files / "qemu-img"), 0), imports_cancel=True)
    (inside,) = [site for site in plan.sites if site.kind == "cancel"]
    assert inside.where == "qemu_bh_cancel"
    assert not inside.emulated
    assert plan.programs[inside.program][1]["BH"] == AARCH64.register_offset("x0")
    assert plan.notes


@pytest.mark.builds
def test_new_flags_that_no_register_keeps_are_refused() -> None:
    """10.0 shares one aio_bh_enqueue(), and the helper leaves what was ORed nowhere."""
    with pytest.raises(ScanFailed, match="the flags that are set at 0x1b51c8 are in no register"):
        planned("arm64-signed", "qemu-img")


@pytest.mark.builds
def test_return_addresses_lie_where_the_functions_have_put_them() -> None:
    """sub sp of aio_bh_call() and aio_bh_poll(): 0x60 each; x30 lies at 0x28 and 0x58 in the frames
    of aio_bh_poll() and aio_poll()."""
    _function, filling = planned("arm64", "qemu-img").programs["run"]
    sp = AARCH64.register_offset("sp")
    assert filling["RUN_DEPTH"] == 0x60
    assert (filling["POLL_CALLER"], filling["POLL_CALLER_OFFSET"]) == (sp, 0x60 + 0x28)
    assert (filling["OUTER_CALLER"], filling["OUTER_CALLER_OFFSET"]) == (sp, 0xC0 + 0x58)


@pytest.mark.builds
def test_the_command_says_for_which_hosts_a_binary_is() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "qtrace", "scan", str(program("arm64")), "-b", "snapshot_*"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "for aarch64 hosts" in run.stdout
    assert run.stdout.count("main") == len(JOBS)


@pytest.mark.parametrize(
    ("word", "is_call"),
    [
        (0x97FFFB5E, True),  # bl
        (0xD63F0020, True),  # blr x1
        (0xD73F0820, True),  # blraa x1, x0
        (0x14000010, False),  # b
        (0xD61F0200, False),  # br x16
        (0xD65F03C0, False),  # ret
        (0xD503201F, False),  # nop
    ],
)
def test_a_return_address_is_told_by_the_call_before_it(word: int, is_call: bool) -> None:
    assert AARCH64.follows_a_call(word.to_bytes(4, "little")) is is_call
    assert AARCH64.follows_a_call(b"") is False


def test_a_direct_call_and_a_stub_tell_where_they_lead() -> None:
    assert AARCH64.called((0x97FFFFFF).to_bytes(4, "little"), 0x1004) == 0x0FFC
    assert AARCH64.called((0xD63F0020).to_bytes(4, "little"), 0x1004) is None
    # adrp x16, 0x20000; ldr x17, [x16, #0xfe8]
    stub = bytes.fromhex("f0000090 11f647f9".replace(" ", ""))
    assert AARCH64.jump_slot(stub, 0x4010) == 0x20FE8
    assert AARCH64.jump_slot(bytes.fromhex("5f2403d5") + stub, 0x4010) == 0x20FE8
    assert AARCH64.jump_slot(bytes(8), 0x4010) is None


def test_a_signature_is_taken_off_a_return_address() -> None:
    assert AARCH64.code_address(0x0023_AAAA_BBBB_CCCC) == 0xAAAA_BBBB_CCCC
    assert AARCH64.code_address(0xAAAA_BBBB_CCCC) == 0xAAAA_BBBB_CCCC


@pytest.mark.parametrize(
    ("word", "simulated", "takes"),
    [
        (0x97FFFB5E, True, True),  # bl
        (0x54000684, True, True),  # b.mi
        (0xB4000694, True, True),  # cbz
        (0x37000375, True, True),  # tbnz
        (0xD63F0020, True, True),  # blr x1
        (0xD65F03C0, True, True),  # ret
        (0x90002C40, True, True),  # adrp
        (0x58000040, True, True),  # ldr x0, literal
        (0xA9BE7BFD, False, True),  # stp x29, x30, [sp, #-32]!
        (0xD503233F, False, True),  # paciasp
        (0xD503245F, False, True),  # bti c
        (0xF9401A74, False, True),  # ldr x20, [x19, #0x30]
        (0xC85FFC20, False, False),  # ldaxr x0, [x1]
        (0xC811FC22, False, False),  # stlxr w17, x2, [x1]
        (0xD4000001, False, False),  # svc #0
        (0xD4200000, False, False),  # brk #0
        (0xD65F0BFF, False, False),  # retaa
        (0x1C000040, False, False),  # ldr s0, literal
        (0xD51BD040, False, False),  # msr tpidr_el0, x0
    ],
)
def test_what_the_kernel_simulates_and_refuses_under_a_probe(
    word: int, simulated: bool, takes: bool
) -> None:
    from qtrace.binary.code_aarch64 import CodeAarch64

    code = CodeAarch64()
    (instruction,) = code.decoder().disasm(word.to_bytes(4, "little"), 0x1000)
    assert (code.is_simulated(instruction), code.takes_probe(instruction)) == (simulated, takes)


def registers(**values: int) -> dict[str, int]:
    return {**dict.fromkeys(AARCH64.prstatus, 0), **values}


def test_a_thread_of_a_core_sleeps_where_the_kernel_has_set_it_back_to_its_call() -> None:
    svc = b"\x01\x00\x00\xd4"

    def code(address: int, size: int) -> bytes:
        return svc if address == 0x1000 else bytes(size)

    asleep = AARCH64.sleeps_in(registers(pc=0x1000, x8=73, x0=5, x1=7), code)
    assert asleep == SystemCall(73, (5, 7, 0, 0, 0, 0))
    assert AARCH64.system_calls[73] == "ppoll"
    interrupted = registers(pc=0x1004, x8=73, x0=(1 << 64) - 4, x1=7)
    assert AARCH64.sleeps_in(interrupted, code) == SystemCall(73, (0, 7, 0, 0, 0, 0))
    # It has come back, with a result; or is elsewhere.
    assert AARCH64.sleeps_in(registers(pc=0x1004, x8=73, x0=1), code) is None
    assert AARCH64.sleeps_in(registers(pc=0x2000, x8=73), code) is None


def test_names_of_system_calls_are_the_headers() -> None:
    header = Path("/usr/include/asm-generic/unistd.h")
    if not header.exists():
        pytest.skip("no asm-generic/unistd.h: apt-get install linux-libc-dev")
    defined = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\n", header.read_text())
    other = {"fstatat": "newfstatat", "fadvise64": "fadvise64", "sync_file_range2": ""}
    known = {int(number): other.get(name, name) for name, number in defined}
    wrong = {
        number: (GENERIC_NAMES.get(number), name)
        for number, name in known.items()
        # From 403 to 423 are those of 32-bit processors with times of 64 bits.
        if name not in ("", "syscalls", "arch_specific_syscall") and number not in range(403, 424)
        if GENERIC_NAMES.get(number) != name
    }
    assert wrong == {}


# readelf's names of registers, where they are not the plain ones.
SPELLED = {"ra": AARCH64.return_address, "sp": AARCH64.stack_pointer}
Row = tuple[int, int, dict[int, int]]


@pytest.mark.builds
@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("arm64-signed", 16),
        pytest.param("arm64-signed", 1, marks=pytest.mark.soak),
        pytest.param("arm64", 1, marks=pytest.mark.soak),
    ],
)
def test_each_row_of_unwind_rules_is_readelfs(name: str, every: int) -> None:
    path = build(name).files / "qemu-img"
    if shutil.which("readelf") is None:
        pytest.skip("no readelf: apt-get install binutils")
    shown = subprocess.run(["readelf", "-wF", path], capture_output=True, text=True, check=True)
    frames = CallFrames(Elf(path))
    starts = frames.starts
    rows = {
        address: row
        for address, row in rows_of(shown.stdout).items()
        if not bisect.bisect_right(starts, address) % every
    }
    rules = {address: frames.rule(address) for address in rows}
    # Vector registers are kept, too, and no frame is found by them.
    ours = {
        address: (
            rule.cfa_register,
            rule.cfa_offset,
            {number: offset for number, offset in rule.saved if number <= AARCH64.pc},
        )
        for address, rule in rules.items()
        if rule is not None
    }
    assert ours == rows
    assert len(rows) > 30_000 // every


def rows_of(listing: str) -> dict[int, Row]:
    """Per address the register and offset of the CFA, and what is saved where from it on, as
    ``readelf -wF`` shows them."""
    found: dict[int, Row] = {}
    columns: list[int | None] = []
    for line in listing.splitlines():
        words = line.split()
        if words[:2] == ["LOC", "CFA"]:
            columns = [number_of(name) for name in words[2:]]
        elif " FDE " in line:
            columns = []
            # Without rows of its own it has its CIE's: nothing has been done yet.
            begin = int(line.rpartition("pc=")[2].partition("..")[0], 16)
            found[begin] = (AARCH64.stack_pointer, 0, {})
        elif columns and words:
            register, offset = words[1].split("+")
            pairs = zip(columns, words[2:], strict=True)
            saved = {n: int(v[1:]) for n, v in pairs if n is not None and v[0] == "c"}
            found[int(words[0], 16)] = (number_of(register) or 0, int(offset), saved)
    return found


def number_of(name: str) -> int | None:
    """A register's number; None of vector registers."""
    if name in SPELLED:
        return SPELLED[name]
    return int(name[1:]) if name[0] == "x" else None


HEADER = struct.Struct("<II")


class Ordered(RecordRing):
    """A ring of one page with one record; the fence is where another processor's stores come."""

    def __init__(self) -> None:
        fd = os.memfd_create("ring")
        os.truncate(fd, 3 * PAGE)
        super().__init__(fd, 1)
        self.memory = mmap.mmap(fd, 3 * PAGE)
        os.close(fd)
        self.fences = 0
        HEADER.pack_into(self.memory, 2 * PAGE, 8, 0)
        struct.pack_into("<Q", self.memory, PAGE, 16)
        self._fence = self.passed

    def passed(self) -> None:
        self.fences += 1
        assert struct.unpack_from("<Q", self.memory, 0) == (0,)
        if self.fences == 2:
            self.memory[2 * PAGE + 8 : 2 * PAGE + 16] = b"the data"


def test_a_record_is_read_behind_its_length_and_given_back_behind_its_data() -> None:
    ring = Ordered()
    assert ring.take(PAGE) == ([b"the data"], True)
    assert (ring.fences, struct.unpack_from("<Q", ring.memory, 0)) == (3, (16,))


def test_only_where_the_processor_keeps_no_order_is_there_a_fence() -> None:
    assert fence_of(X86_64) is None
    try:
        fence = fence_of(AARCH64)
    except OSError:
        pytest.skip(f"no {LIBRARY}: apt-get install libatomic1")
    assert fence is not None
    fence()


@pytest.mark.bpf
@pytest.mark.bcc
@pytest.mark.builds
def test_the_probes_of_all_compile_for_such_registers_and_are_filled_in() -> None:
    """Nothing of it was ever loaded."""
    image = compile_image("all.bpf.c", "#define AS_AARCH64\n")
    fds = dict.fromkeys(image.maps, 3)
    others = ("STACKS_EVERY", "TURN", "NAMESPACED", "NAMESPACE_DEVICE", "NAMESPACE_INODE")
    for name, (function, filling) in planned("arm64", "qemu-img").programs.items():
        code = image.functions[function].filled(fds, {**dict.fromkeys(others, 0), **filling})
        loads = {
            offset
            for operation, _registers, offset, _number in INSTRUCTION.iter_unpack(code)
            if operation == LOAD_WORD
        }
        wanted = {AARCH64.register_offset("pc"), filling.get("BH", 0)}
        if function == "co_schedule":
            wanted |= {AARCH64.register_offset(register) for register in ("x0", "x1", "x30")}
        assert wanted <= loads, name


@pytest.mark.bpf
@pytest.mark.bcc
def test_the_probes_of_watched_sites_compile_for_such_registers() -> None:
    """struct user_pt_regs: x0 to x30 at 8n, sp at 248, pc at 256. Nothing of it was ever loaded."""
    image = compile_image("watch.bpf.c", "#define AS_AARCH64\n")
    code = image.functions["on_hit"].code
    loads = {
        offset
        for operation, _registers, offset, _number in INSTRUCTION.iter_unpack(code)
        if operation == LOAD_WORD
    }
    assert {8 * number for number in range(AARCH64.pc + 1)} <= loads
    size = image.layouts["events"]
    assert size["registers"][1] == 8 * (AARCH64.pc + 1)
    candidates = len(AARCH64.callee_saved) + 2
    assert size["candidates"][1] == candidates * QEMUBH_BYTES
