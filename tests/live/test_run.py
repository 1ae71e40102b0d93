"""``qtrace run``: what becomes a QEMU program, and what never does."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from qtrace.lab.block_load import bench_command, disk_image
from qtrace.lab.guest import find_qemu
from qtrace.record.ebpf.bpf_program import load_ahead
from tests.live.support.benched import REQUESTS, ended_well, frame_of, qtrace_run
from tests.live.support.counted import own_copy, probed_with_counter

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]


def test_a_wrapper_is_followed_to_the_qemu_program_that_it_becomes(tmp_path: Path) -> None:
    script, trace = tmp_path / "wrapper", tmp_path / "trace.csv"
    script.write_text('#!/bin/sh\ntrue\nexec env LANG=C "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    command = bench_command(find_qemu("qemu-img"), disk_image(tmp_path), REQUESTS)
    status, report, _err = qtrace_run("--all", "-o", trace, "--", script, *command)
    assert ended_well(status, report)
    assert report["traces"][0]["exit"] == {"status": 0}
    frame = frame_of(trace)
    runs = (frame["event"] == "run") & (frame["name"] == "thread_pool_completion_bh")
    assert runs.sum() > 0


def test_a_wrapper_that_starts_qemu_and_goes_on_is_followed_too(tmp_path: Path) -> None:
    """As sudo and timeout do, with other programs before; its own status is told."""
    script, trace = tmp_path / "wrapper", tmp_path / "trace.csv"
    script.write_text('#!/bin/sh\n/bin/true\n(env LANG=C "$@")\necho done >"$0.done"\nexit 7\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    command = bench_command(find_qemu("qemu-img"), disk_image(tmp_path), REQUESTS)
    status, report, said = qtrace_run("--all", "-o", trace, "--", script, *command)
    assert ended_well(status, report), said
    assert "wrapper exited with status 7" in said
    assert (tmp_path / "wrapper.done").exists()
    frame = frame_of(trace)
    runs = frame[frame["event"] == "run"]
    assert (runs["name"] == "thread_pool_completion_bh").any()
    # Of a process that is not our child, the kernel tells since Linux 6.15.
    assert report["traces"][0]["exit"] in ({"status": 0}, {})


def test_a_program_that_ends_before_its_event_loop_runs_is_told(tmp_path: Path) -> None:
    """It has been taken for a recording that was silent."""
    command = bench_command(find_qemu("qemu-img"), tmp_path / "none.raw", REQUESTS)
    status, report, said = qtrace_run("--all", "--", *command)
    assert (status, report["verdict"], report["lost_events"]) == (0, "not-seen", 0)
    assert report["traces"][0]["exit"] == {"status": 1}
    assert "not one event came of the 14 probes of --all" in said


def test_what_never_becomes_one_has_run_and_is_refused(tmp_path: Path) -> None:
    made = tmp_path / "made"
    command = ("--", "env", "touch", made)
    status, _report, said = qtrace_run("-o", tmp_path / "trace.csv", *command)
    assert status == 3
    assert made.exists()
    error, remedy = said.splitlines()
    assert error == "error: env has executed no QEMU program: it became touch"
    assert remedy.startswith("remedy: let it execute a QEMU program")


@pytest.mark.bcc
def test_the_working_folder_stays_while_the_probes_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths would mean files among the kernel's headers, where bcc compiles."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = os.getcwd()
    loading = load_ahead(compiled=True)
    seen = {os.getcwd()}
    while not loading.done():
        seen.add(os.getcwd())
        time.sleep(0.001)
    loading.result()
    assert list(tmp_path.glob("**/bpf-*.json"))
    assert seen == {here}


def test_another_tracer_that_lets_nobody_beside_it_is_named(tmp_path: Path) -> None:
    copy = own_copy(find_qemu("qemu-img"), tmp_path)
    command = bench_command(copy, disk_image(tmp_path), 1)
    with probed_with_counter(copy, "aio_bh_call"):
        status, _report, said = qtrace_run("--all", "-o", tmp_path / "t.csv", "--", *command)
    assert status == 3
    assert "error: another tracer has a probe at run, aio_bh_call that lets no other" in said
