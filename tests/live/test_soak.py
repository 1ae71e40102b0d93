"""The large counts: every schedule and run of 2,000 saves, on each QEMU and accelerator."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from qtrace.analysis import judge
from qtrace.lab.guest import Accelerator, Guest
from qtrace.lab.snapshot_jobs import save_round
from qtrace.record.recording_options import RecordingOptions
from qtrace.record.start import start_recording
from tests.live.support.attached import WATCHED, watched_half

pytestmark = [pytest.mark.bpf, pytest.mark.qemu, pytest.mark.soak]

ROUNDS = 2000


@pytest.mark.parametrize("firmware", ["idle", "pflash"])
def test_2000_saves_are_recorded_without_a_loss(
    qemu_binary: Path,
    accel: Accelerator,
    firmware: str,
    tmp_path: Path,
    soak_row: Callable[..., None],
) -> None:
    trace = tmp_path / "trace.csv"
    counts: Counter[str] = Counter()
    with (
        Guest(qemu_binary, accel, firmware=firmware) as guest,
        start_recording(guest.pid, RecordingOptions(trace)) as recording,
    ):
        began = time.monotonic()
        for number in range(ROUNDS):
            save_round(guest.qmp, f"save{number}")
            counts.update(row.event for row in recording.poll(0))
        took = time.monotonic() - began
    report = judge([trace])
    half = watched_half(report)
    soak_row(
        "2,000 saves recorded",
        f"{half['scheduled']} schedules, {sum(half['verdicts'].values())} runs, "
        f"{report['lost_events']} lost, {ROUNDS / took:.0f} rounds/s",
        ", ".join(f"{count} {verdict}" for verdict, count in half["verdicts"].items()),
    )
    assert half["name"] == WATCHED
    assert half["scheduled"] == sum(half["verdicts"].values()) == ROUNDS
    assert report["lost_events"] == 0
    if firmware == "idle":
        assert half["verdicts"] == {"main-loop": ROUNDS}
