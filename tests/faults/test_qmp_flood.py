"""More QMP than a recorder takes: what is lost is counted and said, and costs no verdict."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qtrace.analysis import judge, open_traces
from qtrace.lab.guest import Guest, find_qemu
from qtrace.record.ebpf import backlog
from qtrace.record.ebpf.bpf_program import load_ahead
from qtrace.record.recording_options import RecordingOptions
from qtrace.record.start import start_recording
from qtrace.trace.reader import TraceFile, read_trace
from tests.live.support.attached import WATCHED, attached, save, watched_half
from tests.live.support.spinning import spin

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

# A command has four steps, a ring buffer takes 15,000.
QUERIES, SAVES = 4_200, 50


def test_a_flood_that_meets_a_stopped_recorder_loses_rows_of_qmp_and_no_verdict(
    tmp_path: Path,
) -> None:
    trace = tmp_path / "t.csv"
    with (
        Guest(find_qemu(), firmware="idle") as guest,
        attached(guest.pid, "-o", trace) as attach,
    ):
        save(guest, 7)
        attach.process.send_signal(signal.SIGSTOP)
        # The saves come last, when there has long been no room for rows of QMP.
        spin(guest.second_qmp_socket, SAVES, QUERIES)
        attach.process.send_signal(signal.SIGCONT)
        save(guest, 7)
        status, report, _err = attach.end()
    read, half = read_trace(trace), watched_half(report)
    assert (status, half["verdicts"]) == (0, {"main-loop": SAVES + 14})
    assert half["scheduled"] == SAVES + 14
    assert read.losses.empty
    lost = lost_by_site(read)
    assert lost
    assert {site.split()[0] for site in lost} == {"qmp", "job"}
    assert report["lost_events"] == sum(lost.values())
    assert all(facts.get("probes") == "qmp" for facts in lost_facts(read))
    command = [sys.executable, "-m", "qtrace", "analyze", str(trace)]
    shown = subprocess.run(command, capture_output=True, text=True).stdout
    assert f"{sum(lost.values())} events were lost" in shown
    assert late_reply(trace) == "inconclusive"


def test_memory_for_hits_that_wait_is_bounded_and_every_hit_has_a_row_or_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "HITS_BYTES", 64 << 10)
    monkeypatch.setattr(backlog, "STEPS_BYTES", 16 << 10)
    trace, rounds = tmp_path / "t.csv", 100
    program = load_ahead(ring_pages=16, step_ring_pages=4)
    with (
        Guest(find_qemu(), firmware="idle") as guest,
        start_recording(guest.pid, RecordingOptions(trace), program=program) as recording,
    ):
        recording.poll(0)
        spin(guest.second_qmp_socket, rounds)
        recording.poll(0)
    read = read_trace(trace)
    lost = lost_by_site(read)
    kept = Counter(read.frame["event"])
    for kind in ("schedule", "run", "return"):
        assert 0 < kept[kind] < rounds
        assert kept[kind] + lost[f"{kind} {WATCHED}"] == rounds
    assert lost["qmp command"] > 0
    assert judge([trace])["verdict"] == "inconclusive"


def lost_facts(trace: TraceFile) -> list[dict[str, Any]]:
    frame = trace.frame
    return [json.loads(text) for text in frame.loc[frame["event"] == "lost", "detail"]]


def lost_by_site(trace: TraceFile) -> Counter[str]:
    lost: Counter[str] = Counter()
    for facts in lost_facts(trace):
        lost[facts["site"]] += facts["count"]
    return lost


def late_reply(trace: Path) -> str:
    (result,) = open_traces(trace).lint(["late-reply"])
    return result.result
