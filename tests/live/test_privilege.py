"""What may not be read is said, and never taken for a QEMU in which nothing is stuck."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from qtrace.lab.guest import Guest, find_qemu

pytestmark = pytest.mark.qemu

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
PTRACE = ("--inh-caps=+sys_ptrace", "--ambient-caps=+sys_ptrace")
PTRACE_AND_FILES = (
    "--inh-caps=+sys_ptrace,+dac_read_search", "--ambient-caps=+sys_ptrace,+dac_read_search",
)  # fmt: skip
WITHOUT_PTRACE = ("setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace")


def hiding(option: str) -> tuple[str, ...]:
    """A /proc of its own, mounted with this option."""
    return ("unshare", "-m", "sh", "-c", f'mount -t proc -o {option} proc /proc && exec "$@"', "sh")


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(find_qemu(), firmware="idle") as started:
        yield started


@pytest.mark.parametrize(
    ("user", "status", "words"),
    [
        (NOBODY, 3, "not allowed to look into process"),
        (WITHOUT_PTRACE, 3, "not allowed to look into process"),
        ((*NOBODY, *PTRACE), 3, "not allowed to read the memory of process"),
        ((*NOBODY, *PTRACE_AND_FILES), 0, ""),
        ((*hiding("hidepid=1"), *NOBODY), 3, "not allowed to look into process"),
        ((*hiding("hidepid=2"), *NOBODY), 3, "to this user (hidepid)"),
        ((*hiding("hidepid=4"), *NOBODY), 3, "to this user (hidepid)"),
        ((*hiding("hidepid=2"), *NOBODY, *PTRACE_AND_FILES), 0, ""),
        (hiding("subset=pid"), 0, ""),
    ],
    ids=["nobody", "root without ptrace", "ptrace alone", "ptrace and files", "hidepid 1",
         "hidepid 2", "hidepid 4", "hidepid 2 with ptrace", "only processes"],
)  # fmt: skip
def test_who_may_not_look_is_told_so(
    guest: Guest, user: tuple[str, ...], status: int, words: str
) -> None:
    run = subprocess.run(
        [*user, sys.executable, "-m", "qtrace", "inspect", "--pid", str(guest.pid)],
        text=True, capture_output=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert (run.returncode, words in run.stderr) == (status, True), run.stderr
    assert ("clear" in run.stdout) == (status == 0)
    assert "Traceback" not in run.stderr
