"""`qtrace analyze`, as a person and as a script meet it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import qtrace.cli
from qtrace.trace.schema import Event
from tests.unit.event_rows import (
    MAIN_LOOP,
    NAME,
    VCPU_TID,
    attach,
    detach,
    recording,
    run,
    run_on_vcpu,
    schedule,
    write,
)

Analyze = Callable[..., int]
SAMPLES = Path(__file__).resolve().parents[2] / "analysis/samples"


@pytest.fixture
def analyze(monkeypatch: pytest.MonkeyPatch) -> Analyze:
    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["qtrace", "analyze", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            qtrace.cli.main()
        return int(caught.value.code or 0)

    return call


@pytest.fixture
def finding(tmp_path: Path) -> Path:
    call = Event(
        15, "call", VCPU_TID, "CPU 0/TCG", "vcpu", "vm_stop", stack=("cpu_exec", "vm_stop")
    )
    path = tmp_path / "finding.csv"
    recording(path, schedule(1_000_000), run_on_vcpu(1_213_000), call)
    return path


def test_exit_status_tells_what_was_found(
    analyze: Analyze, tmp_path: Path, finding: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording(tmp_path / "fine.csv", schedule(10), run(20))
    write(tmp_path / "cut.csv", [attach(), schedule(10), run(20), schedule(30)])
    (tmp_path / "junk.csv").write_bytes(b"\x00\x01")
    assert analyze(finding) == 1
    assert analyze(tmp_path / "fine.csv") == 0
    assert analyze(tmp_path / "cut.csv") == 4
    assert analyze(tmp_path / "cut.csv", finding) == 1
    capsys.readouterr()
    assert analyze(tmp_path / "junk.csv") == 3
    output = capsys.readouterr()
    assert output.out == ""
    assert [line.split(":")[0] for line in output.err.splitlines()] == ["error", "remedy"]
    assert analyze(finding, "-b", "no_such_bh") == 2
    assert NAME in capsys.readouterr().err
    assert analyze() == 2


def test_the_verdict_alone_has_the_same_status_and_takes_no_lints(
    analyze: Analyze, finding: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analyze(finding, "--verdict-only") == 1
    assert "vcpu-poll" in capsys.readouterr().out
    assert analyze(finding, "--verdict-only", "--lint", "all") == 2
    assert "leaves out lints" in capsys.readouterr().err


def test_json_is_alone_on_stdout(
    analyze: Analyze, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "cut.csv", [attach(), schedule(10), run_on_vcpu(20)])
    assert analyze(path, "--format", "json") == 1
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert list(report)[:4] == ["schema_version", "verdict", "complete", "lost_events"]
    assert (report["schema_version"], report["verdict"]) == (2, "vcpu-poll")
    assert report["complete"] is False
    assert "was cut off" in output.err


def test_the_table_shows_the_chain_and_says_the_verdict(
    analyze: Analyze, finding: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    analyze(finding)
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert "\x1b" not in text
    assert any(line.split() == [NAME, "1", "1", "vcpu-poll"] for line in lines)
    assert any(
        "aio_poll" in line and "<- vCPU thread CPU 0/TCG polls `main`" in line for line in lines
    )
    assert any("dispatch_write" in line and "<- the guest's device write" in line for line in lines)
    assert any("scheduled by" in line and "0.213 ms before" in line for line in lines)
    assert "the guest was still running" in text
    assert lines[-1] == (
        f"vcpu-poll: {NAME} ran inside a vCPU thread's aio_poll() 1 time of 1 (QEMU issue 2111)"
    )


def test_names_from_the_target_cannot_steer_the_terminal(
    analyze: Analyze, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "[red]\x1b]0;x\x07\u202e"
    target = {"pid": 1, "version": hostile, "program": hostile, "build_id": hostile}
    stack = (*MAIN_LOOP[:-2], "aio_poll", hostile, hostile)
    events = [schedule(5, name=hostile), run_on_vcpu(9, name=hostile, thread=hostile, stack=stack)]
    path = tmp_path / "t.csv"
    recording(path, *events, target=target, watched=[{"name": hostile}], wall_clock=hostile)
    analyze(path, "-b", "*")
    output = capsys.readouterr()
    assert "[red]" in output.out
    assert all(char.isprintable() or char == "\n" for char in output.out + output.err)


def test_head_is_silent(finding: Path) -> None:
    command = f"{sys.executable} -m qtrace analyze --format json {finding} | head -n 1"
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert result.stdout == "{\n"
    assert result.stderr == ""


def test_a_killed_target_is_named(
    analyze: Analyze, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = Event(30, "exit", detail={"signal": 6})
    write(tmp_path / "t.csv", [attach(), schedule(10), run(20), dead, detach(40)])
    assert analyze(tmp_path / "t.csv") == 0
    assert "the target was killed by SIGABRT" in capsys.readouterr().out


def test_a_lint_counts_for_the_exit_status_only_when_it_is_asked_for(
    analyze: Analyze, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    other = {"name": "job_exit", "callback": 7}
    recording(path, schedule(10, **other), run_on_vcpu(20, **other))
    assert analyze(path) == 0
    told = capsys.readouterr().out
    assert "wrong-thread: job_exit (`main`) ran on vCPU thread CPU 0/TCG" in told
    assert f"row 3, 4 of {path}" in told
    assert analyze(path, "--lint", "wrong-thread") == 1
    assert analyze(path, "--lint", "stuck-wait") == 0
    assert "stuck-wait: none" in capsys.readouterr().out
    assert analyze(path, "--lint", "storm") == 4
    assert "storm: inconclusive: it needs every bottom half" in capsys.readouterr().out
    assert analyze(path, "--lint", "all", "--format", "json") == 1
    lints = json.loads(capsys.readouterr().out)["lints"]
    assert {one["lint"]: one["result"] for one in lints}["wrong-thread"] == "finding"


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (("--lint", "strom"), "the nearest is storm; qtrace lints lists them"),
        (("--threshold", "storm=10ms"), "write it like its default, 10,000/s"),
        (("--threshold", "long-callback=7"), "write it like its default, 100ms"),
        (("--threshold", "stranded=7"), "qtrace lints shows which have one"),
        (("--threshold", "storm"), "storm=100/s"),
    ],
)
def test_a_wrong_lint_or_threshold_is_a_usage_error_with_its_remedy(
    analyze: Analyze,
    finding: Path,
    options: tuple[str, str],
    remedy: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert analyze(finding, *options) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert remedy in output.err


def test_lints_are_listed_with_their_sources(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["qtrace", "lints", "--format", "json"])
    with pytest.raises(SystemExit):
        qtrace.cli.main()
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)["lints"]}
    assert listed["storm"]["threshold"] == "10,000/s"
    assert all(row["sentence"] and row["source"] for row in listed.values())


def test_of_many_that_were_watched_only_those_that_were_seen_are_named(
    analyze: Analyze, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with -b '*', where a QEMU has dozens."""
    watched = [{"name": name} for name in (NAME, *(f"idle_{number}_bh" for number in range(9)))]
    for rows, line in (
        ([schedule(10), run(20)], "and 9 that were not scheduled while the recording ran"),
        ([], "not-seen: none of 10 bottom halves was scheduled while the recording ran"),
    ):
        path = tmp_path / f"{len(rows)}.csv"
        write(path, [attach(watched=watched), *rows, detach()])
        assert analyze(path) == 0
        out = capsys.readouterr().out
        assert line in out
        assert "idle_" not in out


@pytest.mark.parametrize(
    ("sample", "bill"),
    [
        (
            "all-idle-7.2-tcg.parquet",
            r"nothing found by \d\d lints; the longest callback took 2\.\d+ us of 100 ms allowed",
        ),
        (
            "main-loop-7.2-tcg.parquet",
            r"nothing found by \d lints; \d cannot tell from this recording",
        ),
        ("vcpu-poll-7.2-tcg.csv", None),
        ("all-save-7.2-tcg.parquet", None),
    ],
)
def test_a_clean_bill_says_who_looked_and_is_given_where_nothing_was_found(
    analyze: Analyze, capsys: pytest.CaptureFixture[str], sample: str, bill: str | None
) -> None:
    analyze(SAMPLES / sample)
    out = capsys.readouterr().out
    if bill is None:
        assert "nothing found" not in out
    else:
        assert re.search(f"^{bill}$", out, re.MULTILINE), out


def test_what_was_not_seen_takes_one_line(
    analyze: Analyze, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [{"name": f"snapshot_{job}_job_bh"} for job in ("save", "load", "delete")]
    path = tmp_path / "none.csv"
    write(path, [attach(watched=jobs), detach()])
    assert analyze(path) == 0
    (line,) = [text for text in capsys.readouterr().out.splitlines() if "_job_bh" in text]
    assert line == (
        "not-seen: snapshot_save_job_bh, snapshot_load_job_bh and snapshot_delete_job_bh were not "
        "scheduled while the recording ran"
    )


def test_what_one_reason_hides_of_several_takes_one_line(
    analyze: Analyze, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [{"name": f"snapshot_{job}_job_bh"} for job in ("save", "load", "delete")]
    why = {"why": "stopped by a signal (SIGSTOP)", "since_ns": 10}
    path = tmp_path / "held.csv"
    write(path, [attach(watched=jobs), Event(2_000_000_010, "held", detail=why), detach()])
    assert analyze(path) == 4
    said = capsys.readouterr().out.splitlines()
    names = "snapshot_save_job_bh, snapshot_load_job_bh and snapshot_delete_job_bh"
    assert [line.partition(":")[0] for line in said if names in line] == [names, "inconclusive"]
    assert sum("stopped by a signal" in line for line in said) == 2


@pytest.mark.parametrize(
    ("call", "watched", "said"),
    [
        ("save_snapshot", "snapshot_save_job_bh", True),
        ("load_snapshot", "snapshot_save_job_bh", False),
        ("save_snapshot", "job_exit", False),
        ("vm_stop", "snapshot_save_job_bh", False),
    ],
)
def test_snapshots_without_a_job_are_told_where_the_job_was_watched(
    analyze: Analyze,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    call: str,
    watched: str,
    said: bool,
) -> None:
    path = tmp_path / "trace.csv"
    row = Event(20, "call", tid=1, thread="qemu", role="main", name=call, stack=("main", call))
    write(path, [attach(watched=[{"name": watched}]), row, detach()])
    assert analyze(path) == 0
    assert ("the snapshots above had no job" in capsys.readouterr().out) == said


def test_a_program_that_has_none_of_the_watched_ones_is_told_so(
    analyze: Analyze, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.csv"
    write(path, [attach(watched=[]), detach()])
    assert analyze(path) == 0
    assert "not-seen: no bottom half was watched" in capsys.readouterr().out
