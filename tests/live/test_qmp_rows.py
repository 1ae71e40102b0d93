"""QMP in the trace: what a reply had to wait for, from both recorders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qtrace.analysis import judge
from qtrace.lab.guest import Accelerator, Guest
from qtrace.lab.snapshot_jobs import REAL, run_job
from qtrace.record.probes import Backend
from qtrace.record.recording_options import RecordingOptions
from qtrace.record.start import start_recording
from qtrace.trace.reader import read_trace

pytestmark = pytest.mark.qemu


@pytest.mark.parametrize(
    "backend",
    [pytest.param("ebpf", marks=pytest.mark.bpf), pytest.param("gdb", marks=pytest.mark.gdb)],
)
def test_between_the_end_of_a_command_and_its_late_reply_lies_the_bottom_half(
    qemu_binary: Path, accel: Accelerator, backend: Backend, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    with (
        Guest(qemu_binary, accel, firmware="idle", disk=True) as guest,
        start_recording(guest.pid, RecordingOptions(trace, backend=backend)) as recording,
    ):
        run_job(guest.qmp, "snapshot-save", "first", **REAL)
        recording.poll(0)
    frame = read_trace(trace).frame
    rows = frame[frame["event"].isin(("qmp", "job", "schedule", "run", "return"))]
    rows = rows[~rows["name"].isin(("job-dismiss", "query-jobs"))]
    facts = [json.loads(text or "{}") for text in rows["detail"]]
    told = [
        f.get("step") or f.get("status") or e for e, f in zip(rows["event"], facts, strict=True)
    ]
    assert told[:8] == ["command", "begin", "created", "running", "schedule", "end", "run", "event"]
    assert told[8:] == ["event", "return", "reply", "waiting", "pending", "concluded", "null"]
    steps = dict(zip(told, rows["time_ns"], strict=True))
    took = steps["return"] - steps["run"]
    assert took / (steps["reply"] - steps["end"]) > 0.5
    assert set(rows.loc[rows["event"] == "job", "name"]) == {"first"}
    (run,) = frame[frame["event"] == "run"].itertuples()
    (returned,) = frame[frame["event"] == "return"].itertuples()
    assert (returned.tid, returned.bh, returned.ctx) == (run.tid, run.bh, run.ctx)
    # A small guest's save need not be late; where it was, the reason is named.
    for late in judge([trace])["late_replies"]:
        assert (late["command"], late["waited_for"]) == ("snapshot-save", "snapshot_save_job_bh")
