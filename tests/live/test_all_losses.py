"""What finds no room while the probes of ``--all`` come and go is no loss of the recording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qtrace.lab.guest import Guest, find_qemu
from qtrace.process.process import Process
from qtrace.record.all_events.all_program import load_all, slot_type
from qtrace.record.ebpf.bpf_program import Program
from qtrace.record.ebpf.rings import Rings
from qtrace.record.ebpf.uprobes import Uprobes
from qtrace.record.plans import make_plans
from tests.live.support.attached import wait_for

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]


@contextmanager
def runs_of(pid: int, pages: int) -> Iterator[tuple[Program, Rings]]:
    """The probe on runs, alone; nobody reads its buffers."""
    process = Process(pid)
    plan = make_plans(process.binary, (), everything=True, optional=True).everything
    assert plan is not None
    program = load_all(plan, pages)
    rings = Rings(program, slot_type())
    uprobes = Uprobes(pid, process.exe, process.binary.elf.offset_of)
    try:
        site = next(site for site in plan.sites if site.kind == "run")
        uprobes.attach(program.functions[site.program], {site.vaddr: "run"})
        yield program, rings
    finally:
        uprobes.close()
        rings.close()
        program.close()


def test_only_while_the_recording_lasts_does_what_finds_no_room_count() -> None:
    with (
        Guest(find_qemu()) as guest,
        runs_of(guest.pid, 1) as (program, rings),
        runs_of(guest.pid, 2048) as (_beside, witness),
    ):

        def lost() -> int:
            return sum(count for _site, count in program.counts("lost"))

        def let_it_run() -> None:
            """The guest writes to flash; each write takes a run or two."""
            seen = witness.produced
            wait_for(lambda: witness.produced > seen + 100)

        wait_for(lambda: rings.fill > 0.9)
        let_it_run()
        assert lost() == 0
        program.count_losses(True)
        wait_for(lambda: lost() > 0)
        program.count_losses(False)
        let_it_run()
        counted = lost()
        let_it_run()
        assert lost() == counted
