"""``aio break`` in gdb: on the calls that schedule one bottom half, or on its function."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.lab.guest import Accelerator, Guest
from qtrace.sites.scan_cache import scan_module
from tests.live.support.attached import attached, is_running
from tests.live.support.gdb_cases import SAVE, Hung, columns, everywhere, save_begun
from tests.live.support.gdb_session import gdb, live, session

pytestmark = [pytest.mark.gdb, pytest.mark.qemu]

STATE = Path(__file__).parent / "support/gdb_state.py"


@everywhere
def test_break_stops_where_the_bottom_half_is_scheduled_and_where_it_runs(
    qemu_binary: Path, accel: Accelerator
) -> None:
    with Guest(qemu_binary, accel, firmware="idle") as guest:
        target = live(guest.pid, qemu_binary)
        with session(target) as gdb_session:
            assert "Breakpoint 1 at" in gdb_session.ask(f"aio break {SAVE}")
            assert "Breakpoint 2 at" in gdb_session.ask(f"aio break {SAVE} --run")
            gdb_session.send("continue")
            with save_begun(guest):
                said = gdb_session.read_until("Breakpoint 1,")
            assert f"{SAVE} is scheduled into main by {guest.pid} (qemu-system-x86)" in said
            assert f"{SAVE} is not pending" in gdb_session.ask(f"aio bh {SAVE}")
            gdb_session.ask("set scheduler-locking on")
            gdb_session.ask("nexti")
            gdb_session.ask("set scheduler-locking off")
            rows = columns(gdb_session.ask(f"aio bh {SAVE}"))
            assert rows[0][1] == "main"
            assert rows[0][4] == "PENDING|SCHEDULED|ONESHOT"
            gdb_session.send("continue")
            said = gdb_session.read_until("Breakpoint 2,")
            assert f"{SAVE} runs on {guest.pid} (qemu-system-x86)" in said
        concluded = {"id": "save", "status": "concluded"}
        guest.qmp.wait_event("JOB_STATUS_CHANGE", lambda event: bool(event["data"] == concluded))


def test_the_call_sites_are_those_of_qtrace_scan(hung: Hung, qemu_binary: Path) -> None:
    target = hung(qemu_binary, "tcg", "core")
    printed = gdb(target, f"source {STATE}", "python sites()")
    found = {tuple(line.split()) for line in printed.splitlines()}
    scan = scan_module(Module(Elf(qemu_binary), 0))
    expected = {
        (f"{site.address:#x}", half.name, f"{half.callback:#x}")
        for half in scan.bottom_halves
        for site in half.sites
        # gdb does not look for schedules that are inlined: those take a whole data flow.
        if half.name.isidentifier() and not site.fields
    }
    assert expected
    assert found == expected


@pytest.mark.bpf
@everywhere
def test_break_stops_beside_an_ebpf_probe(qemu_binary: Path, accel: Accelerator) -> None:
    with Guest(qemu_binary, accel, firmware="idle") as guest, attached(guest.pid, "-b", SAVE):
        with session(live(guest.pid, qemu_binary)) as gdb_session:
            said = gdb_session.ask(f"aio break {SAVE} --run")
            assert "an eBPF probe sits on" in said
            assert "one instruction later" in said
            gdb_session.send("continue")
            with save_begun(guest):
                said = gdb_session.read_until("Breakpoint 1,")
            assert f"{SAVE} runs on {guest.pid}" in said
        assert is_running(guest.pid)
