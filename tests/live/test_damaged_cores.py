"""Real cores of which a part is not there: what is found is true, or it is said what is missing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from qtrace.cli.views.look_view import summary, verdict
from qtrace.inspection.blocks import BlockLooker
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import Qemu
from qtrace.lab.guest import Accelerator, find_qemu
from qtrace.machine.arch_x86_64 import PAGE, PRSTATUS_REGISTERS
from qtrace.process.core_file import CoreFile
from qtrace.process.core_source import CoreSource
from qtrace.qemu.aio.findings import STUCK, Finding, explain
from qtrace.qemu.aio.inconclusive import unclear
from qtrace.qemu.aio.model import Context, Look
from tests.live.support.gdb_cases import STRANDED, Hung, everywhere

pytestmark = [pytest.mark.gdb, pytest.mark.qemu]

SHOWN, MANY = 60, 1000
STACK_POINTER, THREAD_POINTER = map(PRSTATUS_REGISTERS.index, ("rsp", "fs_base"))


class HoledCore(CoreFile):
    """A core that lacks some ranges of memory."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.holes: list[tuple[int, int]] = []

    def read(self, address: int, size: int) -> bytes:
        end = address + size
        for start, stop in self.holes:
            if start < end and address < stop:
                end = max(address, start)
        return super().read(address, end - address) if end > address else b""


@everywhere
def test_with_parts_missing_nothing_else_is_found(
    hung: Hung, qemu_binary: Path, accel: Accelerator
) -> None:
    check_damaged(hung, qemu_binary, accel, SHOWN)


@pytest.mark.soak
@everywhere
def test_with_parts_missing_nothing_else_is_found_a_thousand_times(
    hung: Hung, qemu_binary: Path, accel: Accelerator
) -> None:
    check_damaged(hung, qemu_binary, accel, MANY)


def test_without_the_stacks_of_coroutines_the_block_graph_is_told_all_the_same(hung: Hung) -> None:
    core = HoledCore(Path(hung(find_qemu(), "tcg", "core").arguments[1]))
    source = CoreSource(core)
    look = Looker(Qemu(source)).look()
    whole = BlockLooker(Looker(Qemu(source))).look(look)
    assert whole.coroutines
    assert whole.requests
    assert whole.torn == ()
    core.holes = [co.stack for co in whole.coroutines]
    damaged = BlockLooker(Looker(Qemu(source))).look(look)
    assert (damaged.coroutines, damaged.requests) == ((), ())
    assert damaged.nodes == whole.nodes
    count = len(whole.coroutines)
    assert f"{count} stacks, perhaps of coroutines, whose memory is not there" in damaged.torn
    assert any(what.startswith("requests of node") for what in damaged.torn)


def check_damaged(hung: Hung, qemu: Path, accel: Accelerator, count: int) -> None:
    core = HoledCore(Path(hung(qemu, accel, "core").arguments[1]))
    source = CoreSource(core)
    looker = Looker(Qemu(source))
    whole = looker.look()
    true = explain(whole)
    assert true[0].kind == "stuck"
    assert unclear(whole) == []
    places = interesting(core, looker, whole)
    left_open = 0
    for seed in range(count):
        core.holes = holes(random.Random(seed), places)
        look = Looker(Qemu(source)).look()
        found, reasons = explain(look), unclear(look)
        for finding in found:
            known = what(finding) in map(what, true) or is_less(finding, true)
            assert known, (seed, core.holes, finding.sentence)
        left_behind = {half.name for finding in found for half in finding.bottom_halves}
        assert reasons or STRANDED in left_behind, (seed, core.holes)
        assert (verdict(found, reasons) == "inconclusive") == (bool(reasons) and not found)
        summary(look, reasons)
        left_open += bool(reasons)
    assert count / 10 < left_open < count


def what(finding: Finding) -> tuple[object, ...]:
    """What a finding says, but for names that may be missing."""
    halves = tuple(half.address for half in finding.bottom_halves)
    polls = address_of(finding.polls)
    return finding.kind, finding.context.address, halves, finding.thread.tid, polls


def address_of(context: Context | None) -> int | None:
    return context.address if context else None


def is_less(finding: Finding, true: list[Finding]) -> bool:
    """Whether it tells of a true one's wait that it is stuck, not all of what it leaves behind."""
    return finding.kind == STUCK and any(
        (one.thread.tid, one.waits_in) == (finding.thread.tid, finding.waits_in)
        and finding.polls is not None
        and address_of(finding.polls) in (0, address_of(one.polls))
        for one in true
    )


def interesting(core: CoreFile, looker: Looker, look: Look) -> list[list[int]]:
    """What a look reads: variables, lists, stacks, thread-local storage; and anything at all."""
    registers = core.registers.values()
    layout = looker.layout
    groups = [
        [core.registers[core.pid][STACK_POINTER]],
        [values[STACK_POINTER] for values in registers],
        [values[THREAD_POINTER] for values in registers],
        [address for address in (layout.main_variable, layout.jobs, layout.bql) if address],
        [context.address for context in look.contexts],
        [half.address for half in look.bottom_halves],
        [part.start for part in core.parts],
    ]
    return [group for group in groups if group]


def holes(generator: random.Random, places: list[list[int]]) -> list[tuple[int, int]]:
    found = []
    for _ in range(generator.randint(1, 3)):
        near = generator.choice([64, 512, PAGE])
        at = generator.choice(generator.choice(places)) + generator.randrange(-near, near, 8)
        found.append((at, at + generator.choice([8, 64, 512, PAGE, 1 << 16, 1 << 24])))
    return found
