"""``qtrace inspect`` on a program with debug info, its own or a separate file's."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from qtrace.binary import symbols
from qtrace.binary.debug_layout import facts_of_debug_info
from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.binary.module_code import ModuleDisassembly
from qtrace.lab.guest import find_qemu
from qtrace.qemu.aio.calibration import calibrate
from qtrace.qemu.aio.debug_facts import MEMBERS, VARIABLES, believed
from qtrace.qemu.aio.layout import Layout
from tests.live.support.inspecting import context, functions, inspect, thread
from tests.live.test_gdb_debug_info import LIKE_QEMU, like_qemu

# struct QEMUBH and AioContext of like_qemu.c, as QEMU's since 8.1 as far as they go.
TOLD = {"bh_cb": 16, "bh_opaque": 24, "bh_next": 32, "bh_flags": 40, "ctx_bh_list": 96}


@pytest.mark.parametrize("optimisation", ["-O0", "-O2"])
def test_what_the_code_does_not_show_debug_info_tells(optimisation: str, tmp_path: Path) -> None:
    with like_qemu(optimisation, tmp_path) as target:
        status, document, _err = inspect("--pid", target.pid)
    assert status == 1
    (half,) = context(document, "iohandler")["bottom_halves"]
    assert (half["name"], half["callback_name"]) == ("sample_bh", "sample_bh")
    assert document["debug_info_differs"] == []
    # A function that keeps a frame pointer is unwound from stack pointer and pc alone.
    main = thread(document, target.pid)
    assert main["complete"]
    assert functions(main["stack"])[1:3] == ["aio_poll", "main"]
    assert functions(main["stack"])[-1] == "_start"


def test_code_and_debug_info_agree_also_when_it_is_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    build = ["gcc", "-g", "-O2", "-Wl,--build-id", str(LIKE_QEMU), "-o", str(program)]
    subprocess.run(build, check=True)
    monkeypatch.setattr(symbols, "DEBUG_FOLDER", tmp_path)
    build_id = Elf(program).build_id
    debug = tmp_path / build_id[:2] / f"{build_id[2:]}.debug"
    debug.parent.mkdir()
    subprocess.run(["objcopy", "--only-keep-debug", program, debug], check=True)
    subprocess.run(["objcopy", "--strip-debug", program], check=True)
    module = Module(Elf(program), 0x10000)
    told = facts_of_debug_info(module)
    assert told.items() >= TOLD.items()
    # From the cache the same.
    assert facts_of_debug_info(module) == told
    shown = calibrate(ModuleDisassembly(module))
    assert shown.main_variable == told["main_variable"]
    layout, differing = believed(shown, told)
    assert differing == []
    assert layout.bh_flags == TOLD["bh_flags"]
    other = replace(shown, bh_flags=TOLD["bh_flags"] + 4)
    assert believed(other, told) == (layout, ["bh_flags"])


def test_a_stripped_qemu_has_no_debug_info() -> None:
    assert facts_of_debug_info(Module(Elf(find_qemu()), 0)) == {}


def test_every_fact_that_debug_info_tells_is_one_of_the_layout() -> None:
    facts = {fact for fact, *_rest in (*MEMBERS, *VARIABLES)}
    assert facts <= set(Layout().missing())
