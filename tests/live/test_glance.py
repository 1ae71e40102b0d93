"""A glance in a look's place: it holds while all loops sleep in their loops, no moment longer."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.inspection.watch import Watch
from qtrace.lab.guest import Guest
from qtrace.process.process import Process
from tests.live.support.hung import functions_of_main_thread
from tests.live.support.other_process import stop
from tests.live.support.ptraced import until

pytestmark = pytest.mark.qemu

FOR_EVER = 1 << 62
IOTHREAD = ("-object", "iothread,id=iot0")


@contextmanager
def watched(qemu: Path) -> Iterator[tuple[Guest, Watch]]:
    """An idle guest, and a watch of it that takes glances from now on."""
    with Guest(qemu, firmware="idle", extra_args=IOTHREAD) as guest:
        watch = Watch(Looker(LiveQemu(Process(guest.pid))), glances_ns=FOR_EVER)
        until(lambda: watch.see(time.monotonic_ns()).glanced, "a glance")
        yield guest, watch


def test_a_hang_is_seen_by_the_first_look_after_it_and_its_end_brings_glances_back(
    qemu_binary: Path, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with watched(qemu_binary) as (guest, watch), socket.socket(socket.AF_UNIX) as qmp:
        qmp.connect(str(guest.second_qmp_socket))
        arguments = {"val": 0, "size": 1, "filename": str(pipe)}
        command = {"execute": "pmemsave", "arguments": arguments}
        qmp.sendall(b'{"execute": "qmp_capabilities"}' + json.dumps(command).encode())
        until(lambda: "qmp_pmemsave" in functions_of_main_thread(guest.pid), "the hang")
        seen = watch.see(time.monotonic_ns())
        assert not seen.glanced
        [suspect] = watch.suspects(seen)
        assert suspect.kind == "stuck"
        assert watch.may_hold(suspect)
        pipe.read_bytes()
        until(lambda: watch.see(time.monotonic_ns()).glanced, "glances again")
        assert not watch.may_hold(suspect)


def test_no_glance_holds_of_a_guest_that_is_stopped(qemu_binary: Path) -> None:
    with watched(qemu_binary) as (guest, watch):
        stop(guest.pid)
        seen = watch.see(time.monotonic_ns())
        assert not seen.glanced
        assert seen.look.held
        os.kill(guest.pid, signal.SIGCONT)
        until(lambda: watch.see(time.monotonic_ns()).glanced, "glances again")
