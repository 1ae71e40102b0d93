"""What ``attach --all`` shows on a terminal while it records, in a real pty."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qtrace.lab.guest import Guest, find_qemu
from tests.limits import TIMEOUT_S
from tests.live.support.attached import attach_command, save
from tests.live.support.terminal import on_terminal

# A line of the table, which a busy machine shows seconds after the recording began, with longer
# figures ("1,234 us") and so with less of the names.
ROW = r"(thread|dummy)_.* %"

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]


@pytest.mark.parametrize("columns", [80, 60, 200])
def test_the_table_fits_the_terminal_and_no_figure_is_cut(columns: int, tmp_path: Path) -> None:
    with Guest(find_qemu()) as guest:
        status, shown = on_terminal(
            columns, attach_command(guest.pid, "--all", "--live",
                                    "-o", tmp_path / "trace.parquet"), of="stderr", until=ROW,
        )  # fmt: skip
    # 4: of a busy machine events may be lost, which leaves the verdict open.
    assert status in (0, 1, 4), shown
    header = next(line for line in shown if line.startswith("bottom half"))
    assert header.split()[2:] == ["runs", "wait", "p50", "p99", "took", "p50", "p99"]
    rows = [line for line in shown if re.match(ROW, line)]
    assert rows
    for line in [header, *rows]:
        assert len(line) <= columns
    for row in rows:
        # Names give way, figures do not.
        assert re.search(r" \d+\.\d %( +\d+(\.\d+)? (ns|us|ms|s)| {9})+$", row), row
    # Large numbers go on in the next line.
    assert re.search(r"[\d,]+ events/s, [\d,]+ in all, [\d,]+ lost", " ".join(shown)), shown
    assert any(re.match(r"main +\d.* [\d,]+ +[\d,]+$", line) for line in shown), shown


def test_a_pipe_that_is_closed_early_leaves_no_traceback(tmp_path: Path) -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        command = attach_command(guest.pid, "--all", "--duration", "0.2s")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read().decode()
        process.wait()
    assert "Traceback" not in errors
    assert "Broken pipe" not in errors


def test_a_recording_shows_that_it_lives(tmp_path: Path) -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        command = attach_command(guest.pid, "--duration", "0.2s", "-o", tmp_path / "t.csv")
        status, shown = on_terminal(80, command, of="stderr")
    assert status == 0, shown
    assert re.search(r"\d+ s: \d+ hits, 0 pending", " ".join(shown)), shown


def test_without_a_file_the_statistics_are_printed_and_sites_only_if_asked_for() -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        command = [sys.executable, "-m", "qtrace", "attach", "--pid", str(guest.pid), "--all",
                   "--duration", "0.3s"]  # fmt: skip
        quiet = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert quiet.stderr is not None
        assert quiet.stderr.readline().startswith("recording")
        save(guest, 5)
        out, err = quiet.communicate(timeout=TIMEOUT_S)
        verbose = subprocess.run([*command, "-v"], text=True, capture_output=True)
    assert quiet.returncode == 0, err
    assert re.search(r"^bottom half +ran +p50", out, re.MULTILINE), out
    assert re.search(r"^job_exit +\d+ ", out, re.MULTILINE), out
    assert "aio_bh_call" not in err
    assert re.search(r"^ +run +aio_bh_call", verbose.stderr, re.MULTILINE), verbose.stderr
