"""Whoever does not want to wait for the end of a recording: a second signal works everywhere."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtrace.gdb.target_state import thread_states
from qtrace.lab.block_load import bench_command, disk_image
from qtrace.lab.guest import Guest, find_qemu
from qtrace.trace.convert import convert
from qtrace.trace.reader import read_trace
from tests.limits import TIMEOUT_S
from tests.live.support.attached import WATCHED, attached, save, wait_for
from tests.live.support.loads import children

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

ROUNDS = 10
PAGE = 4096


def test_a_conversion_that_is_broken_off_leaves_all_that_was_recorded(tmp_path: Path) -> None:
    # Nobody reads the pipe: the conversion is in the midst of its work as long as we like.
    trace, raw = tmp_path / "trace.csv", tmp_path / "trace.csv.raw"
    os.mkfifo(trace)
    with (
        Guest(find_qemu(), firmware="idle") as guest,
        attached(guest.pid, "--all", "-o", trace) as attach,
    ):
        save(guest, ROUNDS)
        attach.process.send_signal(signal.SIGINT)
        with open(trace, "rb", buffering=0) as pipe:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PAGE)
            # Not select(2), which knows none but the first 1,024 descriptors.
            written = select.poll()
            written.register(pipe, select.POLLIN)
            assert written.poll(TIMEOUT_S * 1000)
            attach.process.send_signal(signal.SIGINT)
            status, report, err = attach.result()
    assert (status, report) == (128 + signal.SIGINT, {})
    assert f"qtrace convert {raw} {trace}" in err
    assert "Traceback" not in err
    assert convert(raw, tmp_path / "made.csv").complete
    frame = read_trace(tmp_path / "made.csv").frame
    assert ((frame["event"] == "run") & (frame["name"] == WATCHED)).sum() == ROUNDS


@contextmanager
def running(*options: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A ``qtrace run`` that records qemu-img bench, and the latter's pid."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qtrace", "run", "--format", "json", *map(str, options)],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("recording"), line + process.stderr.read()
        (pid,) = children(process.pid)
        yield process, pid
    finally:
        for child in children(process.pid) if process.poll() is None else ():
            os.kill(child, signal.SIGKILL)
        process.communicate()


def bench(tmp_path: Path) -> list[str]:
    return bench_command(find_qemu("qemu-img"), disk_image(tmp_path), 1_000_000_000)


def test_a_program_that_heeds_no_signal_is_killed_at_the_second(tmp_path: Path) -> None:
    with running("--", *bench(tmp_path)) as (process, pid):
        os.kill(pid, signal.SIGSTOP)
        # One that has yet to stop takes the SIGTERM first: the lower number.
        wait_for(lambda: set(thread_states(pid).values()) == {"T"})
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: is_pending(pid, signal.SIGTERM))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert "was ended by signal 9" in err
    assert json.loads(out)["traces"][0]["exit"] == {"signal": 9}


def is_pending(pid: int, number: signal.Signals) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = (line.split()[1] for line in lines if line.startswith("ShdPnd"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_signal_reaches_a_program_whose_recording_has_ended(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    options = ("--duration", "0.1s", "-o", trace, "--", *bench(tmp_path))
    with running(*options) as (process, _pid):
        wait_for(lambda: "detach" in trace.read_text())
        process.send_signal(signal.SIGTERM)
        _out, err = process.communicate(timeout=TIMEOUT_S)
    assert "was ended by signal 15" in err
