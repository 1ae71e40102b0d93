"""Cores of QEMUs for aarch64 hosts: their stacks are gdb's, signed or not, and inspect reads them.

No such hardware was there: an emulator runs Debian's programs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import Qemu
from qtrace.machine.arch_aarch64 import ADDRESS_BITS, LR
from qtrace.process.core_file import CoreFile
from qtrace.process.core_source import CoreSource
from qtrace.process.stack import COMPLETE
from tests import conftest
from tests.builds import Build
from tests.conftest import ROOT
from tests.live.support import emulated
from tests.live.support.emulated import Taken

pytestmark = [pytest.mark.builds, pytest.mark.soak]
# Of both builds the same functions lie below the command, others beside them.
WAY = (
    "qmp_query_status", "qmp_marshal_query_status", "do_qmp_dispatch_bh", "aio_bh_poll",
    "aio_dispatch", "g_main_context_dispatch", "main_loop_wait", "qemu_main_loop",
    "__libc_start_main", "_start",
)  # fmt: skip


@cache
def taken_of(base: Path, name: str, cpu: str) -> Taken:
    folder = base / f"{name}-{cpu}"
    folder.mkdir()
    return emulated.take_core(conftest.build(name), cpu, folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short path: sockets lie there."""
    if why := emulated.absent():
        conftest.absent("builds", why)
    return tmp_path_factory.mktemp("a64")


# The file that is copied is longer than the limit lets pass; the other disk answers nothing.
COPIED, LIMIT, FOR_EVER = 8 << 20, 1000, 900_000_000_000
REQUESTS = {("write", 8192, 1024), ("read", 4096, 512)}


def with_a_graph(build: Build, cpu: str, folder: Path) -> Taken:
    """Nodes, backends, an export, a paused job, requests in flight and a migration."""
    disk = folder / "disk"
    disk.write_bytes(b"x" * COPIED)
    options = [
        "-object", f"throttle-group,id=limit0,x-bps-total={LIMIT}",
        "-blockdev", f"file,node-name=file0,filename={disk}",
        "-blockdev", "raw,node-name=format0,file=file0",
        "-blockdev", "throttle,node-name=limited0,throttle-group=limit0,file=format0",
        "-blockdev", f"null-co,node-name=sink0,size={COPIED}",
        "-drive", f"if=none,id=drive0,driver=null-co,latency-ns={FOR_EVER}",
    ]  # fmt: skip
    server = {"type": "unix", "data": {"path": str(folder / "nbd.sock")}}
    mirror = {"job-id": "job0", "device": "limited0", "target": "sink0", "sync": "full"}
    commands: list[tuple[str, dict[str, object]]] = [
        ("nbd-server-start", {"addr": server}),
        ("block-export-add", {"type": "nbd", "id": "export0", "node-name": "limited0"}),
        ("blockdev-mirror", mirror),
        ("job-pause", {"id": "job0"}),
        *(
            ("human-monitor-command", {"command-line": f'qemu-io drive0 "aio_{kind} {at} {size}"'})
            for kind, at, size in sorted(REQUESTS)
        ),
        ("migrate", {"uri": "exec:sleep 60"}),
    ]
    told: list[dict[str, object]] = [{"execute": e, "arguments": a} for e, a in commands]
    return emulated.take_core(build, cpu, folder, options, told)


@pytest.mark.parametrize(("name", "cpu"), [("arm64", "cortex-a57"), ("arm64-signed", "max")])
def test_the_block_graph_is_what_qmp_has_made(base: Path, name: str, cpu: str) -> None:
    folder = base / f"{name}-graph"
    folder.mkdir()
    taken = with_a_graph(conftest.build(name), cpu, folder)
    told = inspected(taken)
    block = told["block"]
    nodes = {node["name"]: node for node in block["nodes"]}
    own = {n: (node["driver"], node["children"]) for n, node in nodes.items() if n[0] != "#"}
    assert own == {
        "file0": ("file", {}),
        "format0": ("raw", {"file": "file0"}),
        "limited0": ("throttle", {"file": "format0"}),
        "sink0": ("null-co", {}),
    }
    (top,) = [node for node in nodes.values() if node["driver"] == "mirror_top"]
    assert top["children"] == {"backing": "limited0"}
    (null,) = [node for n, node in nodes.items() if n[0] == "#" and node is not top]
    assert nodes["file0"]["file"] == str(folder / "disk")
    assert {node["ctx"] for node in nodes.values()} == {told["contexts"][0]["ctx"]}
    assert {node["quiesced"] for node in nodes.values()} == {0}
    (drive,) = [backend for backend in block["backends"] if backend["name"]]
    assert (drive["name"], drive["node"]) == ("drive0", null["name"])
    assert (drive["in_flight"], drive["io_status"]) == (len(REQUESTS), "ok")
    assert {export["id"]: export["node"] for export in block["exports"]} == {"export0": top["name"]}
    mine = {
        (request["kind"], request["offset"], request["bytes"]): request
        for request in block["requests"]
        if request["node"] == null["name"]
    }
    assert mine.keys() == REQUESTS
    assert {(r["device"], r["wait"]) for r in mine.values()} == {("drive0", "timer")}
    throttled = [request for request in block["requests"] if request["node"] == "limited0"]
    assert throttled
    assert {(r["kind"], r["job"], r["wait"], r["group"]) for r in throttled} == {
        ("read", "job0", "throttled", "limit0")
    }
    assert nodes["limited0"]["requests"] == nodes["limited0"]["in_flight"] == len(throttled)
    assert (block["run_state"], told["missing"], told["torn"]) == ("prelaunch", [], [])
    assert block["migration"] in ("setup", "active")
    assert any("job0 was paused by a user" in remark for remark in told["remarks"])


def inspected(taken: Taken) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-m", "qtrace", "inspect", "--core", taken.core, "--sysroot", taken.root,
         "--format", "json"],
        capture_output=True, text=True,
    )  # fmt: skip
    # One look at a thread that runs clears nothing.
    assert (run.returncode, run.stderr) == (4, "")
    told: dict[str, Any] = json.loads(run.stdout)
    assert told["verdict"] == "inconclusive"
    return told


def looker_of(taken: Taken) -> Looker:
    return Looker(Qemu(CoreSource(CoreFile(taken.core), None, taken.root)))


def chains(looker: Looker) -> dict[int, tuple[list[int], list[str], str]]:
    """Addresses, names and end of each thread's stack."""
    found = {}
    for tid in looker.source.threads():
        registers = looker.source.state(tid).registers
        assert registers is not None
        chain = looker.unwinder.unwind(registers, looker._word)
        found[tid] = chain.pcs, looker.unwinder.names(chain), chain.end
    return found


@pytest.mark.parametrize("name", ["arm64", "arm64-signed"])
def test_stacks_without_signatures_are_gdbs_frame_by_frame(base: Path, name: str) -> None:
    """On a processor that knows none, code that signs does nothing."""
    taken = taken_of(base, name, "cortex-a57")
    ours = chains(looker_of(taken))
    assert {tid: pcs for tid, (pcs, _names, _end) in ours.items()} == taken.stacks
    assert {end for _pcs, _names, end in ours.values()} == {COMPLETE}
    assert len(ours) == 4


def test_signed_return_addresses_lead_the_same_way(base: Path) -> None:
    """gdb 13 itself does not get through them; without signatures it does."""
    signed = looker_of(taken_of(base, "arm64-signed", "max"))
    plain = looker_of(taken_of(base, "arm64-signed", "cortex-a57"))
    ours, wanted = chains(signed), chains(plain)
    main, same = ours[signed.pid], wanted[plain.pid]
    assert main[1:] == same[1:]
    assert main[2] == COMPLETE
    functions = iter(frame.split("+0x")[0] for frame in main[1])
    assert all(function in functions for function in WAY)
    registers = signed.source.state(signed.pid).registers or {}
    chain = signed.unwinder.unwind(registers, signed._word)
    saved = [frame.registers[LR] for frame in chain.frames if LR in frame.registers]
    assert any(address >> ADDRESS_BITS for address in saved)


@pytest.mark.parametrize(("name", "cpu"), [("arm64", "cortex-a57"), ("arm64-signed", "max")])
def test_inspect_reads_such_a_core(base: Path, name: str, cpu: str) -> None:
    """Its own IOThread, and the monitor's."""
    told = inspected(taken_of(base, name, cpu))
    names = [context["name"] for context in told["contexts"]]
    assert names[:2] == ["main", "iohandler"]
    assert len([n for n in names if n.startswith("iothread:")]) == 2
    assert told["missing"] == []
    (main,) = [thread for thread in told["threads"] if thread["role"] == "main"]
    assert main["tid"] == told["target"]["pid"]
    assert [thread["role"] for thread in told["threads"]].count("iothread") == 2
    assert told["bql"]["holder"] == main["tid"]
    assert (told["block"]["nodes"], told["block"]["requests"]) == ([], [])
    # The coroutine that dispatches commands, down to its trampoline.
    (coroutine,) = told["block"]["coroutines"]["others"]
    assert coroutine["complete"]
    assert coroutine["entry"] == "monitor_qmp_dispatcher_co"
    assert coroutine["stack"][0].startswith("qemu_coroutine_switch+")
    assert coroutine["stack"][-1].startswith("monitor_qmp_dispatcher_co+")


def test_gdbs_commands_say_that_they_know_x86_64_alone(base: Path) -> None:
    taken = taken_of(base, "arm64", "cortex-a57")
    build = conftest.build("arm64")
    orders = [
        f"set sysroot {taken.root}", f"file {build.files / build.system}",
        f"core-file {taken.core}", f"source {ROOT / 'gdbscripts/aio.py'}", "aio contexts",
    ]  # fmt: skip
    run = subprocess.run(
        [emulated.GDB, "-nx", "-batch", *(word for order in orders for word in ("-ex", order))],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.stderr.splitlines()[-1] == "only x86-64 QEMUs can be read, this is aarch64"
    assert "Traceback" not in run.stderr
