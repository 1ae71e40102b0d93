"""The waits of ``--all`` on busy guests, each against the naive pairing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from qtrace.analysis import Trace, open_traces
from qtrace.lab.guest import Accelerator, Guest
from tests.live.support.attached import attached, save
from tests.naive import differences, reason, reasons

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

RECORDED_S, SOAK_S = 0.7, 2
# What was pending when the last probe was set is over by then, on a machine as busy as you like.
SETTLED_NS = 10_000_000_000


def recorded(qemu: Path, accel: Accelerator, trace: Path, seconds: float) -> Trace:
    """A guest that writes to flash and is saved all the time, before, while and after."""
    with Guest(qemu, accel) as guest:
        with attached(guest.pid, "--all", "-o", trace) as attach:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                save(guest, 1)
            status, report, err = attach.end()
        save(guest, 1)
    assert status in (0, 1) or report["lost_events"], err
    return open_traces(trace)[0]


def check_waits(one: Trace) -> str:
    """Every wait is the naive one, or a row by row reason says why it is not; in a line."""
    # On a busy machine the reader may come too late: what was lost is no wait.
    equal, found = differences(one.events, one.instances, one.losses)
    unexplained = [d for d in found if not reason(d)]
    assert not unexplained, unexplained[0]
    # Other threads' notes cross now and then; the rest is as plain as it looks.
    assert equal > 0.9 * len(found)
    runs = one.instances[one.instances["end"] == "run"]
    before = runs[runs["scheduled_ns"].isna()]
    began = one.events["time_ns"].iloc[0]
    assert len(one.losses) or (before["ended_ns"] - began < SETTLED_NS).all()
    named = ", ".join(f"{count} {why}" for why, count in sorted(reasons(found).items()))
    assert equal > 1000
    return (
        f"{equal} naive waits; {named or 'no other'}; {len(before)} pending at the beginning;"
        f" longest {runs['wait_ns'].max() / 1e6:.1f} ms; {one.lost_events} lost"
    )


def check_edges(one: Trace) -> None:
    """All probes begin and end with the recording."""
    events, until = one.events, one.detach["until_ns"]
    probed = events[events["tid"] != 0]
    began = events["time_ns"].iloc[0]
    assert events["event"].iloc[0] == "attach"
    assert probed["time_ns"].between(began, until, inclusive="left").all()
    every = one.detach["all"]
    own = probed["event"].isin(["schedule", "run", "return", "cancel", "delete", "co_schedule"])
    assert every["produced"] == every["written"] + every["lost"]
    # The watched ones' schedules and runs are noted twice, and have one row each. Where a probe of
    # returns is passed by what was cancelled or deleted, too (Debian 13), such a hit has no row.
    passed = every["written"] - own.sum()
    shared = any(site["shared"] for site in one.header["all"])
    most = probed["event"].isin(["cancel", "delete"]).sum() if shared else 0
    assert one.lost_events or 0 <= passed <= most
    # Each thread has at most the runs open that were so when it ended.
    runs = one.runs
    open_still = runs[runs["end_ns"].isna().to_numpy()]
    still = pd.Series(one.latest_ends)[open_still.index] >= until
    assert len(one.losses) or still.all()


def test_every_wait_on_a_busy_guest_is_the_naive_one_or_explained(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    one = recorded(qemu_binary, accel, tmp_path / "t.parquet", RECORDED_S)
    check_waits(one)
    check_edges(one)


@pytest.mark.soak
def test_every_wait_of_a_longer_recording_is_the_naive_one_or_explained(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path, soak_row: Callable[..., None]
) -> None:
    one = recorded(qemu_binary, accel, tmp_path / "t.parquet", SOAK_S)
    soak_row("waits of a busy guest", check_waits(one))
    check_edges(one)
