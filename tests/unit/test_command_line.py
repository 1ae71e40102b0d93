"""What every command shares: help, usage errors, two-line errors, pipes, exit statuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qtrace.cli import COMMANDS


def qtrace(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qtrace", *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    run = qtrace(command, "--help")
    assert run.returncode == 0
    assert run.stdout.startswith(f"Usage: qtrace {command}")
    text = " ".join(run.stdout.partition("\n\n")[2].split())
    assert text.startswith(COMMANDS[command])
    assert max(map(len, run.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    "arguments",
    [
        ("nosuch",), ("attach",), ("attach", "--pid", "x"),
        ("attach", "--pid", "1", "--duration", "0"),
        ("scan",), ("analyze",), ("lab",), ("lab", "nosuch"), ("ps", "--format", "xml"),
    ],
)  # fmt: skip
def test_wrong_usage_is_status_2_without_a_traceback(arguments: tuple[str, ...]) -> None:
    run = qtrace(*arguments)
    assert run.returncode == 2
    assert run.stdout == ""
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("scan", "/nonexistent"), ("scan", "/etc/passwd"), ("analyze", "/nonexistent"),
        ("attach", "--pid", "4000000"), ("lab", "vcpu-poll", "--qemu", "/nonexistent"),
        ("attach", "--pid", str(os.getpid()), "-o", "/nonexistent/trace.csv"),
    ],
)  # fmt: skip
def test_bad_input_is_two_lines_and_status_3(arguments: tuple[str, ...]) -> None:
    run = qtrace(*arguments)
    assert run.returncode == 3
    assert run.stdout == ""
    what, remedy = run.stderr.splitlines()
    assert what.startswith("error: ")
    assert remedy.startswith("remedy: ")


def test_debug_shows_the_traceback() -> None:
    run = qtrace("--debug", "scan", "/nonexistent")
    assert run.returncode == 3
    assert "Traceback" in run.stderr


@pytest.mark.parametrize("arguments", [("lab", "--list"), ("attach", "--help")])
def test_a_reader_that_leaves_early_gets_no_complaint(
    tmp_path: Path, arguments: tuple[str, str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with (tmp_path / "stderr").open("w+") as stderr:
        process = subprocess.run(
            [sys.executable, "-m", "qtrace", *arguments], stdout=writer, stderr=stderr
        )
        os.close(writer)
        stderr.seek(0)
        assert stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("arguments", [("--help",), ("attach", "--help")])
def test_nothing_heavy_is_imported_for_the_help(arguments: tuple[str, ...]) -> None:
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "qtrace", *arguments],
        capture_output=True, text=True,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert "click" in imported
    assert imported.isdisjoint({"pandas", "numpy", "bcc", "rich", "capstone", "elftools"})
