"""What the programs of `--all` would read at their sites in a QEMU for aarch64 hosts, beside what
gdb says there: an emulator runs Debian's 7.2. No probe was ever set on such hardware.
"""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.machine.arch_aarch64 import AARCH64
from qtrace.sites.all_plan import AllPlan
from qtrace.sites.all_sites import plan_all
from tests import conftest
from tests.limits import TIMEOUT_S
from tests.live.support import emulated

pytestmark = [pytest.mark.builds, pytest.mark.soak]
PROMPT = b"(qemu) "
COMMANDS = (
    "drive_add 0 if=none,id=d0,driver=null-co", 'qemu-io d0 "read 0 512"',
    'qemu-io d0 "aio_write 0 512"', "drive_del d0",
)  # fmt: skip
NAMES = {AARCH64.register_offset(name): name for name in AARCH64.prstatus}
WORDS = 40
# Run by gdb. The breakpoint at which it stands is taken off, so that it needs no step to go on.
SCRIPT = """
import gdb, json
own = int(gdb.parse_and_eval("(long)&aio_bh_poll")) - {base}
process = gdb.selected_inferior()
sites = {{own + site: gdb.Breakpoint("*%d" % (own + site)) for site in {sites}}}

def word(at):
    try:
        return int.from_bytes(bytes(process.read_memory(at, 8)), "little")
    except gdb.MemoryError:
        return None

with open("{hits}", "w") as out:
    while process.pid:
        try:
            gdb.execute("continue", to_string=True)
            frame = gdb.newest_frame()
        except gdb.error:
            break
        here = frame.pc()
        for address, breakpoint in sites.items():
            breakpoint.enabled = address != here
        names = ["x%d" % number for number in range(31)] + ["sp"]
        registers = {{n: int(frame.read_register(n)) & (1 << 64) - 1 for n in names}}
        callers = []
        while frame is not None and len(callers) < 5:
            callers.append(frame.pc())
            frame = frame.older()
        print(json.dumps({{
            "site": here - own, "registers": registers, "own": own, "callers": callers,
            "stack": [word(registers["sp"] + 8 * n) for n in range({words})],
            "flags": {{n: word(value + {flags}) for n, value in registers.items()}},
        }}), file=out)
"""


def test_at_each_site_is_what_the_programs_read_there(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if why := emulated.absent():
        conftest.absent("builds", why)
    build = conftest.build("arm64")
    module = Module(Elf(build.files / build.system), 0)
    plan = plan_all(module)
    met: Counter[str] = Counter()
    begun: list[tuple[int, int]] = []
    for hit in hits_of(tmp_path_factory.mktemp("a64"), plan, module):
        site = next(site for site in plan.sites if site.vaddr == hit["site"])
        _function, filling = plan.programs[site.program]
        registers, callers = hit["registers"], hit["callers"]
        met[site.kind] += 1
        bh = NAMES[filling.get("BH", 0)]
        if site.kind == "enqueue":
            assert lies_at(hit, filling, "CALLER") == callers[1]
            assert hit["flags"][bh] & 0xFFFFFFFF == registers["x0"] & 0xFFFF | site.new_flags
        elif site.kind == "run":
            assert lies_at(hit, filling, "POLL_CALLER") == callers[2]
            if (module.function_name(callers[2] - hit["own"]) or ("",))[0] == "aio_poll":
                assert lies_at(hit, filling, "OUTER_CALLER") == callers[3]
                met["run in aio_poll()"] += 1
            begun.append((registers["sp"] + filling["RUN_DEPTH"], registers[bh]))
        elif site.kind == "return":
            # What was not run passes here, too.
            if begun and begun[-1][0] == registers["sp"]:
                assert registers[bh] == begun.pop()[1]
                met["return of a run"] += 1
        elif site.kind == "co_schedule":
            assert registers["x30"] == callers[1]
    assert met.keys() >= {"enqueue", "run", "run in aio_poll()", "co_schedule"}
    assert met["return of a run"] == met["run"]


def lies_at(hit: dict[str, Any], filling: dict[str, int], name: str) -> int | None:
    """What lies at a PLACE of probes/holes.h."""
    assert NAMES[filling[name]] == "sp"
    assert not filling[f"{name}_IS_POINTED_TO"]
    found: int | None = hit["stack"][filling[f"{name}_OFFSET"] // 8]
    return found


def hits_of(folder: Path, plan: AllPlan, module: Module) -> list[dict[str, Any]]:
    """A QEMU whose one thread works through commands; gdb writes what it finds at each site."""
    build = conftest.build("arm64")
    root, program = build.files.parents[1], build.files / build.system
    debugged, monitor, hits = folder / "gdb.sock", folder / "hmp.sock", folder / "hits.json"
    script = folder / "at_sites.py"
    script.write_text(
        SCRIPT.format(
            base=module.symbols.address("aio_bh_poll"),
            sites=[site.vaddr for site in plan.sites],
            hits=hits,
            words=WORDS,
            flags=plan.layout.flags,
        )
    )
    command = [
        "/bin/sh", "-c", emulated.STARTER, "sh", emulated.EMULATOR, "-L", root,
        "-cpu", "cortex-a57", "-g", debugged, program, "-M", "none", "-accel", "tcg,tb-size=8",
        "-nodefaults", "-display", "none", "-S", "-L", root / "usr/share/qemu",
        "-monitor", f"unix:{monitor},server=on,wait=off",
    ]  # fmt: skip
    orders = [
        "set pagination off", f"set sysroot {root}", f"file {program}",
        f"target remote {debugged}", "break qemu_main_loop", "continue", "delete",
        f"source {script}",
    ]  # fmt: skip
    debugger = [emulated.GDB, "-nx", "-batch", *(w for order in orders for w in ("-ex", order))]
    with emulated.running(command, folder / "qemu.log"):
        emulated.wait_for(debugged)
        with emulated.running(debugger, folder / "gdb.log") as gdb:
            emulated.wait_for(monitor)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(TIMEOUT_S)
                client.connect(os.fspath(monitor))
                for order in COMMANDS:
                    read_prompt(client)
                    client.sendall(f"{order}\n".encode())
                read_prompt(client)
                client.sendall(b"quit\n")
                gdb.wait(TIMEOUT_S)
    return [json.loads(line) for line in hits.read_text().splitlines()]


def read_prompt(client: socket.socket) -> None:
    said = b""
    while not said.endswith(PROMPT):
        said += client.recv(1)
