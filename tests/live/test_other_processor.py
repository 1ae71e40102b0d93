"""On a host of another processor than x86-64, of which no live process was ever tried, each command
says so in one line, and does nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qtrace.lab.guest import Guest, find_qemu

pytestmark = pytest.mark.qemu

ELSEWHERE = """
from qtrace.machine import architectures
architectures.TRIED = architectures.AARCH64
from qtrace.cli import main
main()
"""


def elsewhere(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of qtrace's as on such a host."""
    return subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *arguments], text=True, capture_output=True
    )


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(find_qemu(), firmware="idle") as started:
        yield started


@pytest.mark.parametrize(
    "arguments",
    [
        ("attach",), ("attach", "--all"), ("attach", "--backend", "gdb"), ("inspect",), ("check",),
        ("autopsy", "-o", "FILE"), ("steer", "--bh", "job_exit", "--run-on", "vcpu"),
        ("reroute", "--bh", "job_exit", "--to", "iohandler"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_command_about_a_process_is_refused_in_one_line(
    guest: Guest, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    file = tmp_path / "file"
    words = [str(file) if word == "FILE" else word for word in arguments]
    run = elsewhere(*words, "--pid", str(guest.pid))
    assert (run.returncode, run.stdout) == (3, ""), run.stderr
    error, remedy = run.stderr.splitlines()
    assert error.startswith(f"error: process {guest.pid} is one of an x86-64 host: live processes")
    assert error.endswith("on aarch64 alone")
    assert remedy.startswith("remedy: take a core")
    assert not file.exists()


def test_a_program_is_not_run(tmp_path: Path) -> None:
    run = elsewhere("run", "--all", "--", str(find_qemu("qemu-img")), "create", "-f", "raw",
                    str(tmp_path / "image"), "1M")  # fmt: skip
    assert (run.returncode, run.stdout) == (3, ""), run.stderr
    assert len(run.stderr.splitlines()) == 2
    assert not (tmp_path / "image").exists()


def test_lists_name_it_and_say_why_nothing_is_known(guest: Guest) -> None:
    assert "on aarch64 alone" in " ".join(elsewhere("ps").stdout.split())
    (processor,) = [
        check
        for check in json.loads(elsewhere("doctor", "--format", "json").stdout)["checks"]
        if check["name"] == "processor"
    ]
    assert processor["state"] == "missing"
    assert "scan" in processor["remedy"]
