"""Names are untrusted: none reaches a terminal as it is, or makes a thread what it is not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qtrace.lab.guest import Guest, find_qemu
from qtrace.qemu.aio.mechanics import plain
from tests.live.support.inspecting import in_words, inspect, thread

pytestmark = pytest.mark.qemu

NO_OTHERS = ("other", "worker")


@pytest.mark.parametrize("name", ["CPU 0/KVM", "IO iot0", "migration"])
def test_a_name_that_every_thread_inherits_makes_none_what_it_says(name: str) -> None:
    arguments = ("-name", f"process={name}", "-object", "iothread,id=iot0")
    with Guest(find_qemu(), "tcg", "idle", debug_threads=False, extra_args=arguments) as guest:
        (iothread,) = guest.qmp.command("query-iothreads")
        (cpu,) = guest.qmp.command("query-cpus-fast")
        status, document, _err = inspect("--pid", guest.pid)
    # All but the one that was made before the process had its name.
    names = [t["name"] for t in document["threads"]]
    assert names.count(name) == len(names) - 1
    # A worker of the thread pool may still be there: it is told by its function.
    workers = [t for t in document["threads"] if t["role"] == "worker"]
    assert all("worker_thread" in plain(t["stack"]) for t in workers)
    # QEMU's monitor has an IOThread, too.
    roles = {t["tid"]: t["role"] for t in document["threads"] if t["role"] not in NO_OTHERS}
    own = {guest.pid: "main", iothread["thread-id"]: "iothread", cpu["thread-id"]: "vcpu"}
    assert own.items() <= roles.items()
    assert sorted(roles.values()) == ["iothread", "iothread", "main", "vcpu"]
    assert (status, document["verdict"]) == (0, "clear")


@pytest.mark.parametrize("name", ["\x1b[31m%s\n\r\a\udcff", "[bold]x[/]"])
def test_a_hostile_name_is_shown_inert(name: str) -> None:
    arguments = ("-name", f"process={name}")
    with Guest(find_qemu(), "tcg", "idle", debug_threads=False, extra_args=arguments) as guest:
        document = inspect("--pid", guest.pid)[1]
        words = in_words("--pid", guest.pid)
        watched = subprocess.run(
            [sys.executable, "-m", "qtrace", "inspect", "--pid", str(guest.pid),
             "--watch", "100ms", "--duration", "300ms"],
            text=True, capture_output=True,
        )  # fmt: skip
    assert (watched.returncode, watched.stderr) == (0, "")
    for shown in (words, watched.stdout):
        assert all(c.isprintable() or c == "\n" for c in shown)
    assert thread(document, guest.pid)["name"].isprintable()
    assert name in words or not name.isprintable()
