"""``qtrace ps``: the QEMUs here, by really looking."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qtrace.lab.guest import Guest, find_qemu
from tests.live.support.counted import own_copy
from tests.live.support.inspecting import inspect

pytestmark = pytest.mark.qemu


def ps(*prefix: str) -> dict[int, dict[str, object]]:
    run = subprocess.run(
        [*prefix, sys.executable, "-m", "qtrace", "ps", "--format", "json"],
        capture_output=True, text=True, check=True, env=os.environ | {"HOME": "/tmp"},
    )  # fmt: skip
    return {process["pid"]: process for process in json.loads(run.stdout)["processes"]}


def test_a_guest_is_listed_with_its_name_version_and_threads() -> None:
    with Guest(find_qemu(), firmware="idle", extra_args=("-name", "guest=my vm")) as guest:
        listed = ps()[guest.pid]
        threads = len(os.listdir(f"/proc/{guest.pid}/task"))
        assert listed["name"] == "my vm"
        assert str(listed["version"]).startswith(guest.qmp.version)
        assert abs(int(str(listed["threads"])) - threads) <= 2
        assert listed["attach"] == ["ebpf", "gdb"]
        assert inspect("--name", "my vm")[0] == 0
        status, _document, said = inspect("--name", "my pm")
        assert (status, "my vm" in said) == (3, True)
        assert inspect("--name", "my vm", "--pid", guest.pid)[0] == 2


def test_a_program_by_the_name_that_nixos_gives_it_is_listed(tmp_path: Path) -> None:
    copy = own_copy(find_qemu(), tmp_path)
    wrapped = copy.rename(copy.with_name(f".{copy.name}-wrapped"))
    with Guest(wrapped, firmware="idle") as guest:
        assert ps()[guest.pid]["program"] == wrapped.name


def test_a_traced_guest_says_by_whom() -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        strace = subprocess.Popen(
            ["gdb", "-nx", "-q", "-p", str(guest.pid), "-ex", "shell echo ready"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert strace.stdout is not None
        assert any("ready" in line for line in strace.stdout)
        listed = ps()[guest.pid]
        strace.communicate("detach\nquit\n")
    assert listed["attach"] == ["ebpf"]
    assert listed["hindrance"] == f"traced by process {strace.pid}: no gdb"


def test_another_users_guest_is_listed_with_what_it_takes() -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        listed = ps("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")[guest.pid]
    assert listed["attach"] == []
    assert "root" in str(listed["hindrance"])
