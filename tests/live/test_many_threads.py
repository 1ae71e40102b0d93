"""A QEMU with more threads than this process may open files: looked at in bounded time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from qtrace.lab.guest import Guest, find_qemu

pytestmark = pytest.mark.qemu

# Each thread has several files in /proc.
FILES = 256
# Generous for a busy machine; a look that took time with the square of the threads takes minutes.
LONGEST_S = 60


@pytest.mark.parametrize("threads", [300, pytest.param(1900, marks=pytest.mark.soak)])
def test_every_thread_is_shown_with_few_files(threads: int, soak_row: Callable[..., None]) -> None:
    iothreads = [part for n in range(threads) for part in ("-object", f"iothread,id=i{n}")]
    with Guest(find_qemu(), "tcg", "idle", extra_args=iothreads) as guest:
        began = time.monotonic()
        run = subprocess.run(
            ["prlimit", f"--nofile={FILES}:{FILES}", sys.executable, "-m", "qtrace", "inspect",
             "--pid", str(guest.pid), "--format", "json"],
            text=True, capture_output=True,
        )  # fmt: skip
        took = time.monotonic() - began
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    names = {context["name"] for context in document["contexts"]}
    assert {f"iothread:i{n}" for n in range(threads)} <= names
    # One may have something to do just then.
    running = [t["tid"] for t in document["threads"] if not (t["blocked_in"] or t["kernel"])]
    assert len(running) <= 2
    assert took < LONGEST_S
    soak_row("a look at a QEMU with so many IOThreads", f"each shown, {took:.1f} s")
