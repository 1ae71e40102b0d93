"""The timeline of QMP commands and jobs, on recordings of real QEMUs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from qtrace.analysis import open_traces, timelines

SAMPLES = Path(__file__).resolve().parents[2] / "analysis/samples"


def test_what_kept_a_reply_back_is_told_with_its_command_and_its_job() -> None:
    (trace,) = timelines(open_traces(SAMPLES / "late-reply-stock-10.0-kvm.parquet"))
    saves = [one for one in trace["commands"] if one["name"] == "snapshot-save"]
    assert len(saves) == 3
    for command in saves:
        assert command["took_ns"] is not None
        assert command["took_ns"] < 1_000_000
        assert command["replied_ns"] is not None
        assert command["taken_ns"] is not None
        (ran,) = command["before_reply"]
        assert (ran["name"], ran["role"], ran["count"]) == ("snapshot_save_job_bh", "main", 1)
        answered_ns = command["replied_ns"] - command["taken_ns"]
        assert 0.9 * answered_ns < ran["longest_ns"] < answered_ns
        assert [one["name"] for one in command["waited"]] == ["snapshot_save_job_bh"]
    jobs = [job for job in trace["jobs"] if "delete" not in job["name"]]
    assert [job["inside"][0]["name"] for job in jobs] == ["snapshot_save_job_bh"] * 3
    for job in jobs:
        assert job["concluded_ns"] is not None
        assert 0 < job["guest_stopped_ns"] < job["concluded_ns"] - job["first_ns"]


def test_a_command_that_keeps_the_main_loop_bears_what_looks_showed() -> None:
    (trace,) = timelines(open_traces(SAMPLES / "stuck-7.2-tcg.csv"))
    (command,) = trace["commands"]
    assert command["took_ns"] is not None
    assert command["took_ns"] > 1_000_000_000
    assert ["in QMP chardev-add" in sentence for sentence in command["looks"]] == [True]


def test_the_bottom_half_that_carries_a_command_out_is_not_what_ran_inside_it() -> None:
    (trace,) = timelines(open_traces(SAMPLES / "all-save-7.2-tcg.parquet"))
    for command in trace["commands"]:
        names = [one["name"] for one in (*command["inside"], *command["before_reply"])]
        assert "do_qmp_dispatch_bh" not in names
    save = trace["commands"][0]
    polled = next(o for o in save["before_reply"] if o["name"] == "thread_pool_completion_bh")
    assert polled["count"] > 100


def test_the_command_line_prints_it_in_the_order_of_time_and_as_json() -> None:
    sample = str(SAMPLES / "late-reply-stock-10.0-kvm.parquet")
    words = [sys.executable, "-m", "qtrace", "analyze", "--commands", sample]
    told = subprocess.run(words, text=True, capture_output=True, check=True)
    heads = [line for line in told.stdout.splitlines() if line.startswith("+")]
    assert heads == sorted(heads, key=lambda line: float(line.split()[0]))
    assert any("QMP snapshot-save" in line for line in heads)
    assert any("job save0: created" in line for line in heads)
    said = subprocess.run([*words, "--format", "json"], text=True, capture_output=True, check=True)
    (trace,) = json.loads(said.stdout)["timelines"]
    assert len(trace["commands"]) == 12


def test_a_recording_without_commands_says_so() -> None:
    words = [sys.executable, "-m", "qtrace", "analyze", "--commands"]
    sample = str(SAMPLES / "busy-10.0-tcg.parquet")
    told = subprocess.run([*words, sample], text=True, capture_output=True, check=True)
    assert told.stdout.startswith("no QMP command took 10 ms")
