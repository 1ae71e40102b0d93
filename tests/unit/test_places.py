"""Where experiments take hold, in the code of the QEMUs that are installed."""

from __future__ import annotations

import itertools
from pathlib import Path

import capstone
import pytest

from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.errors import ScanFailed
from qtrace.sites.experiment_places import context_chosen, just_entered, main_loop_unlock
from qtrace.sites.scan_cache import scan_module
from qtrace.sites.watch import find_watchable, plan_watch
from tests.builds import QEMU
from tests.conftest import build

pytestmark = pytest.mark.qemu

JOBS = ("snapshot_save_job_bh", "snapshot_load_job_bh", "snapshot_delete_job_bh", "job_exit")


@pytest.fixture
def module(qemu_binary: Path) -> Module:
    return Module(Elf(qemu_binary), 0)


def decode(module: Module, address: int, count: int) -> list[capstone.CsInsn]:
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    code = module.elf.read(address, 15 * count)
    return list(itertools.islice(engine.disasm(code, address), count))


def called(module: Module, address: int) -> str:
    """The function called by the instruction before an address."""
    (call,) = decode(module, address - 5, 1)
    assert call.mnemonic == "call"
    found = module.symbols.lookup(int(call.op_str, 16))
    assert found is not None
    return found[0]


@pytest.mark.parametrize("name", JOBS)
def test_the_context_has_just_been_returned_and_goes_straight_to_the_call(
    module: Module, name: str
) -> None:
    half = find_watchable(scan_module(module), name)
    (chosen,) = context_chosen(module, half)
    (site,) = half.sites
    address = chosen.address
    assert (chosen.register, chosen.offset) == ("rax", None)
    assert called(module, address) == "qemu_get_aio_context"
    between = [i for i in decode(module, address, 20) if i.address < site.address]
    assert not any(i.mnemonic == "call" or i.mnemonic.startswith("j") for i in between)
    assert between[-1].address + between[-1].size == site.address


def test_the_main_loop_is_held_where_it_has_dropped_the_bql_before_it_polls(
    module: Module,
) -> None:
    unlock = main_loop_unlock(module)
    assert called(module, unlock.after) in ("bql_unlock", "qemu_mutex_unlock_iothread")
    assert unlock.after - unlock.before == 5
    calls = [i for i in decode(module, unlock.after, 6) if i.mnemonic == "call"]
    names = [module.symbols.lookup(int(call.op_str, 16)) for call in calls]
    assert [name[0] for name in names if name] == ["replay_mutex_unlock", "qemu_poll_ns"]


@pytest.mark.parametrize("name", JOBS)
def test_a_callback_is_stopped_behind_its_first_instruction(module: Module, name: str) -> None:
    half = find_watchable(scan_module(module), name)
    entered = just_entered(module, half.callback)
    first, second = decode(module, half.callback, 2)
    assert first.mnemonic == "push"
    assert (entered.address, entered.pushed) == (second.address, 8)


@pytest.mark.builds
def test_where_a_callback_begins_with_endbr64_it_is_stopped_behind_its_probe_too() -> None:
    module = Module(Elf(build("ubuntu").files / QEMU), 0)
    scan = scan_module(module)
    half = find_watchable(scan, "snapshot_save_job_bh")
    entered = just_entered(module, half.callback)
    (probe,) = [s.vaddr for s in plan_watch(scan, module).sites if s.label == f"run {half.name}"]
    assert half.callback < probe < entered.address
    assert entered.pushed == 8


def test_a_context_that_comes_from_no_call_is_refused(module: Module) -> None:
    half = find_watchable(scan_module(module), "aio_wait_bh")
    with pytest.raises(ScanFailed, match="aio_wait_bh"):
        context_chosen(module, half)
