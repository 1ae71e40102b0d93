"""What ``attach --all`` shows on a terminal while it records, in a real pty."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from qtrace.lab.guest import Guest, find_qemu
from tests.live.attached import attach_command
from tests.live.terminal import on_terminal

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]


@pytest.mark.parametrize("columns", [80, 60, 200])
def test_the_table_fits_the_terminal_and_no_figure_is_cut(columns: int, tmp_path: Path) -> None:
    with Guest(find_qemu()) as guest:
        status, shown = on_terminal(
            columns, attach_command(guest.pid, "--all", "--live", "--duration", "2.5s",
                                    "-o", tmp_path / "trace.parquet"), of="stderr",
        )  # fmt: skip
    assert status in (0, 1), shown
    header = next(line for line in shown if line.startswith("bottom half"))
    assert header.split()[2:] == ["runs", "wait", "p50", "p99", "took", "p50", "p99"]
    rows = [line for line in shown if re.match(r"(thread_pool_c|dummy_bh_cb)", line)]
    assert rows
    for line in [header, *rows]:
        assert len(line) <= columns
    for row in rows:
        # Names give way, figures do not.
        assert re.search(r" \d+\.\d %( +\d+(\.\d+)? (ns|us|ms|s)| {9})+$", row), row
    rates = [line for line in shown if " events/s, " in line]
    assert re.match(r"[\d,]+ events/s, [\d,]+ in all, [\d,]+ lost, main [\d,]+/s$", rates[0])


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
