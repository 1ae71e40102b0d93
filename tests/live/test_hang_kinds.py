"""Hangs of other kinds than a nested poll: a lock whose holder runs, and work that is none."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from qtrace.inspection.looker import Looker
from qtrace.inspection.proof import prove
from qtrace.inspection.qemu import LiveQemu
from qtrace.inspection.watch import Watch
from qtrace.lab.guest import Accelerator, Guest, find_qemu
from qtrace.process.process import Process
from qtrace.qemu.aio.model import Look
from tests.live.support.gdb_cases import everywhere
from tests.live.support.hung import functions_of_main_thread
from tests.live.support.inspecting import inspect
from tests.live.support.luks_job import ARGUMENTS as LUKS_ARGUMENTS
from tests.live.support.luks_job import LuksJob
from tests.live.support.other_process import stop
from tests.live.support.ptraced import until
from tests.live.support.writing import (
    DEBUG_CONSOLE,
    SERIAL,
    functions_waiting_for_lock,
    writing_guest,
)

pytestmark = pytest.mark.qemu

# How long LUKS is to try how many rounds it can do, in ms.
ITERATIONS_MS = 30_000
LOOKS = 20


@everywhere
def test_a_vcpu_that_runs_for_ever_with_the_bql_makes_the_main_loop_stuck(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    """Nobody reads the debug console's pipe: the vCPU thread tries again every 100 us, so that the
    lock's holder runs and moves all the time."""
    with writing_guest(qemu_binary, accel, tmp_path, DEBUG_CONSOLE) as qemu:
        until(lambda: "main_loop_wait" in functions_waiting_for_lock(qemu.pid), "the hang")
        status, document, _err = inspect("--pid", qemu.pid)
    assert (status, document["verdict"]) == (1, "stuck")
    (finding,) = document["findings"]
    sentence = finding["sentence"]
    assert sentence.startswith(f"the main loop does not run: {qemu.pid} (main) waits in main_loop")
    assert f" (CPU 0/{accel.upper()}), which " in sentence
    assert ", for the BQL of " in sentence
    assert "qemu_chr_" in sentence
    assert ", for device isa-debugcon /machine/peripheral-anon/device[" in sentence
    assert f"pipe {tmp_path}/pipe, whose read end is held by process {os.getpid()} (" in sentence
    assert "it was given no processor in between" in finding["proof"]
    assert finding["at_least_ns"] >= 2_000_000_000


def test_a_vcpu_that_keeps_the_bql_is_told_while_the_main_loop_has_nothing_to_do(
    tmp_path: Path,
) -> None:
    """Nobody waits for the lock yet: the guest stands still, and the next QMP command will hang."""
    with writing_guest(find_qemu(), "kvm", tmp_path, DEBUG_CONSOLE, main_sleeps=True) as qemu:
        status, document, _err = inspect("--pid", qemu.pid)
        own = f"pipe {tmp_path}/pipe, whose read end is held by process {os.getpid()} ("
        # As a monitor looks.
        watch = Watch(Looker(LiveQemu(Process(qemu.pid))))
        watch.see(time.monotonic_ns())
        again = watch.see(time.monotonic_ns())
        stop(qemu.pid)
        held = watch.see(time.monotonic_ns())
    assert again.findings or again.reasons
    assert held.findings == ()
    assert any("stopped by a signal" in reason for reason in held.reasons)
    assert (status, document["verdict"]) == (1, "stuck")
    (finding,) = document["findings"]
    # Should a timer wake it up, the main loop is what waits.
    kept, late = "nobody gets the BQL: vCPU thread ", "the main loop does not run: "
    assert finding["sentence"].startswith((kept, late))
    assert "qemu_chr_write" in finding["sentence"]
    assert ", for device isa-debugcon /machine/peripheral-anon/device[" in finding["sentence"]
    assert own in finding["sentence"]


def test_a_vcpu_that_writes_to_who_takes_it_is_nothing_to_report(tmp_path: Path) -> None:
    with writing_guest(find_qemu(), "tcg", tmp_path, SERIAL) as qemu:
        status, document, _err = inspect("--pid", qemu.pid)
    assert (status, document["verdict"], document["findings"]) == (0, "clear", [])


@everywhere
def test_a_main_thread_that_computes_is_told_as_that_and_never_as_stuck(
    qemu_binary: Path, accel: Accelerator
) -> None:
    """LUKS counts its rounds on the main thread, and on another one while main waits for it."""
    with (
        Guest(qemu_binary, accel, firmware="idle", extra_args=LUKS_ARGUMENTS) as guest,
        socket.socket(socket.AF_UNIX) as qmp,
    ):
        job = LuksJob(guest, qmp, "luks", ITERATIONS_MS)
        seen = []
        while "computes" not in seen:
            assert len(seen) < LOOKS
            job.go_on()
            status, document, _err = inspect("--pid", guest.pid)
            assert (document["verdict"], status) in {
                ("clear", 0), ("computes", 4), ("inconclusive", 4)
            }  # fmt: skip
            seen.append(document["verdict"])
    (finding,) = document["findings"]
    assert finding["command"] in (None, "QMP blockdev-create")
    assert "qcrypto_" in finding["sentence"]
    assert finding["sentence"].startswith(f"the main loop does not run: {guest.pid} (main)")


def test_a_wait_that_began_only_after_the_first_look_is_proven_too(tmp_path: Path) -> None:
    """The same wait as at the first look, but another one: it moved in between. So does one that a
    debugger has let go, until it gets a processor to fall asleep on again."""
    with Guest(find_qemu(), firmware="idle") as guest, socket.socket(socket.AF_UNIX) as qmp:
        looker = Looker(LiveQemu(Process(guest.pid)))
        qmp.connect(str(guest.second_qmp_socket))
        qmp.sendall(b'{"execute": "qmp_capabilities"}')
        first = opening(guest, qmp, tmp_path / "first", looker)
        (tmp_path / "first").read_bytes()
        # It is answered when the other command is over.
        guest.qmp.command("query-status")
        opening(guest, qmp, tmp_path / "second", looker)
        proof = prove(looker, replace(first, time_ns=time.monotonic_ns()))
    (finding,) = proof.findings
    assert (finding.kind, finding.command) == ("stuck", "QMP pmemsave")
    assert "it was given no processor in between" in finding.proof


def opening(guest: Guest, qmp: socket.socket, pipe: Path, looker: Looker) -> Look:
    """A look while the main thread waits for somebody to read a pipe."""
    os.mkfifo(pipe)
    arguments = {"val": 0, "size": 1, "filename": str(pipe)}
    qmp.sendall(json.dumps({"execute": "pmemsave", "arguments": arguments}).encode())
    until(lambda: "qmp_pmemsave" in functions_of_main_thread(guest.pid), "the wait for a reader")
    return looker.look()
