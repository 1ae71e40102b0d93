"""The scan of the QEMUs that are installed: names, callbacks, contexts, and no symbols."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from qtrace.binary.cfi import CallFrames
from qtrace.binary.code_x86_64 import direct_target
from qtrace.binary.dataflow import Function
from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.binary.symbols import SymbolTable, load_symbols
from qtrace.errors import NoMatch, NotQemu, TargetError, UnsupportedBinary
from qtrace.host.cache import cache_folder
from qtrace.machine.arch_x86_64 import ENDBR64
from qtrace.sites import scan_cache
from qtrace.sites.scan import Scan
from qtrace.sites.scanner import scan_binary
from qtrace.sites.watch import plan_watch
from tests.builds import QEMU
from tests.conftest import build

JOBS = ("snapshot_save_job_bh", "snapshot_load_job_bh", "snapshot_delete_job_bh")


@cache
def scan_of(path: Path, *, symbols: bool = True) -> Scan:
    module = Module(Elf(path), 0)
    if not symbols:
        module.parsed.symbols = SymbolTable([])
    return scan_binary(module, "")


@pytest.mark.qemu
def test_the_snapshot_jobs_are_found_with_one_call_site_each_into_main(qemu_binary: Path) -> None:
    scan = scan_of(qemu_binary)
    found = {half.name: half for half in scan.bottom_halves}
    for name in JOBS:
        assert found[name].callback
        assert [site.context for site in found[name].sites] == ["main"]
    # effd60c878 (9.0 and stable backports): commands are dispatched in the iohandler context.
    assert [s.context for s in found["do_qmp_dispatch_bh"].sites] == ["iohandler"]


@pytest.mark.qemu
def test_every_call_site_is_read_and_all_but_variables_are_named(qemu_binary: Path) -> None:
    scan = scan_of(qemu_binary)
    assert {s.address for half in scan.bottom_halves for s in half.sites} == listed(
        qemu_binary, scan
    )
    unnamed = [half.name for half in scan.bottom_halves if not half.watchable]
    assert unnamed == ["cb"]


@pytest.mark.builds
def test_inlined_schedules_are_found_with_their_names_and_contexts() -> None:
    """Ubuntu's build is link-time optimised: nobody calls the scheduling function."""
    qemu = build("ubuntu").files / QEMU
    scan = scan_of(qemu)
    sites = {s.address: half for half in scan.bottom_halves for s in half.sites}
    assert sum(half.watchable for half in sites.values()) >= 107
    found = {half.name: half for half in scan.bottom_halves}
    contexts = {n: {s.context for s in found[n].sites} for n in (*JOBS, "do_qmp_dispatch_bh")}
    assert contexts.pop("do_qmp_dispatch_bh") == {"iohandler"}
    assert list(contexts.values()) == [{"main"}] * len(JOBS)
    for half in (found[name] for name in JOBS):
        assert (len(half.sites), half.callback > 0, len(half.exits) > 0) == (1, True, True)


@pytest.mark.builds
@pytest.mark.soak
def test_inlined_schedules_are_those_of_the_listing_and_found_without_symbols() -> None:
    qemu = build("ubuntu").files / QEMU
    scan = scan_of(qemu)
    assert {s.address for half in scan.bottom_halves for s in half.sites} == listed(qemu, scan)
    blind = scan_of(qemu, symbols=False)
    assert (blind.found_by, blind.scheduler) == ("names", scan.scheduler)
    assert blind.context_variables == scan.context_variables
    assert [(h.name, h.callback, h.sites) for h in blind.bottom_halves if h.name in JOBS] == [
        (h.name, h.callback, h.sites) for h in scan.bottom_halves if h.name in JOBS
    ]


def listed(qemu: Path, scan: Scan) -> set[int]:
    """The schedules in objdump's listing: each call of the scheduling function, and of what it
    ends in where the flags of a one-shot are loaded shortly before; not its own."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", qemu], capture_output=True, text=True, check=True
    ).stdout
    callees = {f"{s.callee:x}" for half in scan.bottom_halves for s in half.sites}
    callees.add(f"{scan.scheduler:x}")
    lines = listing.splitlines()
    found = set()
    for number, line in enumerate(lines):
        called = any(c in line for c in callees) and re.match(
            r" +([0-9a-f]+):\t(?:call|j\w+) +([0-9a-f]+)\b", line
        )
        if not called or called[2] not in callees:
            continue
        if called[2] == f"{scan.scheduler:x}":
            found.add(int(called[1], 16))
            continue
        before = "\n".join(lines[max(number - 40, 0) : number])
        flags = re.findall(r"mov +\$(0x[0-9a-f]+),%esi", before.rpartition(">:\n")[2])
        if flags[-1:] == ["0xa"] and f"{scan.scheduler:016x}" not in before:
            found.add(int(called[1], 16))
    return found


@pytest.mark.qemu
def test_without_symbols_the_name_strings_lead_to_the_same_scan(qemu_binary: Path) -> None:
    known, blind = scan_of(qemu_binary), scan_of(qemu_binary, symbols=False)
    assert blind.found_by == "names"
    assert blind.scheduler == known.scheduler
    assert [(h.name, h.callback) for h in blind.bottom_halves] == [
        (h.name, h.callback) for h in known.bottom_halves
    ]
    assert blind.context_variables == known.context_variables
    jobs = {h.name: h.sites[0].context for h in blind.bottom_halves}
    assert {jobs[name] for name in JOBS} == {"main"}


@pytest.mark.qemu
def test_the_snapshot_jobs_and_the_dispatcher_end_where_they_wake_a_coroutine(
    qemu_binary: Path,
) -> None:
    elf = Elf(qemu_binary)
    scan = scan_of(qemu_binary)
    wake = load_symbols(elf).address("aio_co_wake")
    found = {half.name: half for half in scan.bottom_halves}
    for name in (*JOBS, "do_qmp_dispatch_bh"):
        (end,) = found[name].exits
        start, stop = CallFrames(elf).function(end) or (0, 0)
        assert start == found[name].callback
        assert direct_target(Function(elf, start, stop).instructions[end]) == wake
    # One that is a mere jump begins and ends at the same instruction.
    assert found["dummy_bh_cb"].exits == ()


@pytest.mark.qemu
def test_every_step_of_a_qmp_command_has_one_site(qemu_binary: Path) -> None:
    steps = [site.step for site in scan_of(qemu_binary).qmp]
    assert sorted(steps) == sorted(["command", "begin", "end", "reply", "STOP", "RESUME", "status"])


@pytest.mark.builds
def test_where_the_look_up_of_a_command_is_inlined_what_it_is_asked_for_next_tells_it() -> None:
    sites = scan_of(build("ubuntu").files / QEMU).qmp
    assert sorted(site.step for site in sites) == sorted(
        ["command", "begin", "end", "reply", "STOP", "RESUME", "status"]
    )
    assert [site.argument for site in sites if site.step == "command"] == [4]


@pytest.mark.builds
def test_no_probe_of_the_watch_is_on_an_instruction_that_only_guards_a_jump() -> None:
    """endbr64 is single-stepped under a uprobe; Ubuntu's functions begin with it."""
    module = Module(Elf(build("ubuntu").files / QEMU), 0)
    plan = plan_watch(scan_of(build("ubuntu").files / QEMU), module)
    assert {site.past for site in plan.sites} == {0, len(ENDBR64)}
    codes = [module.elf.read(site.vaddr, len(ENDBR64)) for site in plan.sites]
    assert ENDBR64 not in codes


@pytest.mark.qemu
def test_symbols_are_found_without_section_headers(qemu_binary: Path, tmp_path: Path) -> None:
    stripped = tmp_path / "qemu"
    data = bytearray(qemu_binary.with_name("qemu-img").read_bytes())
    data[0x28:0x30] = bytes(8)  # e_shoff
    data[0x3C:0x40] = bytes(4)  # e_shnum, e_shstrndx
    stripped.write_bytes(data)
    assert load_symbols(Elf(stripped)).address("aio_poll") == load_symbols(
        Elf(qemu_binary.with_name("qemu-img"))
    ).address("aio_poll")


@pytest.mark.qemu
def test_a_cached_scan_is_used_only_where_the_code_agrees(
    qemu_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tool = qemu_binary.with_name("qemu-img")
    first = scan_cache.scan_module(Module(Elf(tool), 0))
    (path,) = cache_folder().glob("scan-*.json")
    assert scan_cache.scan_module(Module(Elf(tool), 0)) == first

    forged = json.loads(path.read_text())
    forged["bottom_halves"][0]["sites"][0]["address"] += 1
    path.write_text(json.dumps(forged))
    assert scan_cache.scan_module(Module(Elf(tool), 0)) == first
    for broken in ("", "{}", "[1]", "null"):
        path.write_text(broken)
        assert scan_cache.scan_module(Module(Elf(tool), 0)) == first


@pytest.mark.qemu
def test_the_command_prints_json_alone_on_stdout(qemu_binary: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "qtrace", "scan", str(qemu_binary), "-b", "snapshot_*",
         "--format", "json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    report = json.loads(run.stdout)
    assert report["schema_version"] == 2
    assert {half["name"] for half in report["bottom_halves"]} == set(JOBS)
    assert run.stderr == ""


@pytest.mark.parametrize(
    ("content", "error"),
    [(b"", UnsupportedBinary), (b"#!/bin/sh\n", UnsupportedBinary), (b"\x7fELF", UnsupportedBinary),
     (None, TargetError)],
)  # fmt: skip
def test_what_is_no_elf_file_is_refused(
    tmp_path: Path, content: bytes | None, error: type[Exception]
) -> None:
    path = tmp_path / "binary"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error):
        Elf(path)


def test_a_program_that_is_not_qemu_is_refused() -> None:
    elf = Elf(shutil.which("ls") or "/bin/ls")
    with pytest.raises(NotQemu):
        scan_binary(Module(elf, 0), "")


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ({4: b"\x01", 18: b"\x03\0"}, "a 32-bit EM_386 binary"),
        ({18: b"\x28\0"}, "a 64-bit EM_ARM binary"),
    ],
    ids=["32-bit", "another-machine"],
)
def test_a_binary_of_another_machine_is_refused_as_what_it_is(
    tmp_path: Path, places: dict[int, bytes], said: str
) -> None:
    header = bytearray(Path("/proc/self/exe").read_bytes()[:64])
    for at, changed in places.items():
        header[at : at + len(changed)] = changed
    path = tmp_path / "binary"
    path.write_bytes(header + bytes(4096))
    with pytest.raises(UnsupportedBinary, match=said):
        Elf(path)


@pytest.mark.qemu
def test_beside_all_a_glob_without_a_one_shot_is_left_to_its_rows_and_so_are_many(
    qemu_binary: Path,
) -> None:
    scan, module = scan_of(qemu_binary), Module(Elf(qemu_binary), 0)
    with pytest.raises(NoMatch):
        plan_watch(scan, module, ["nosuch*"])
    plan = plan_watch(scan, module, ["nosuch*", *JOBS, "*"], everything=True)
    assert plan.by_all == ("nosuch*", "*")
    assert {half.name for half in plan.watched} == set(JOBS)
    assert all("the rows of --all" in note for note in plan.notes)
    assert len(plan.notes) == 2
