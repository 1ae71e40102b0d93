"""Storm, busy loop and lost schedules on stock QEMUs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qtrace.analysis import open_traces
from qtrace.analysis.lint import Finding
from qtrace.lab.block_load import bench_command, disk_image
from tests.live.support.attached import attached
from tests.live.support.benched import ended_well, qtrace_run
from tests.live.support.ringing import ENTRIES, ringing

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

ENOUGH_S = 0.5
DEPTH, REQUESTS = 8192, 60_000
TOGETHER = 100


def found(trace: Path, lint: str) -> Finding:
    (result,) = open_traces(trace).lint([lint])
    assert (result.result, len(result.findings)) == ("finding", 1), result
    assert set(result.findings[0].evidence()["event"]) <= {"schedule", "run", "cancel"}
    return result.findings[0]


def test_a_card_that_schedules_itself_for_each_packet_is_a_storm_and_a_busy_loop(
    qemu_binary: Path, tmp_path: Path
) -> None:
    trace, queues = tmp_path / "t.parquet", 0
    with (
        ringing(qemu_binary, tmp_path) as (guest, card),
        attached(guest.pid, "--all", "-o", trace) as attach,
    ):
        until = time.monotonic() + ENOUGH_S
        while time.monotonic() < until:
            card.send()
            queues += 1
        status, report, _err = attach.end()
    assert (status, report["lost_events"]) == (0, 0)
    storm, busy = found(trace, "storm"), found(trace, "busy-loop")
    assert (storm.name, storm.context, storm.role) == ("virtio_net_tx_bh", "main", "main")
    assert storm.value > 10_000
    # The first packet of a queue is the guest's, all others are its own.
    assert storm.count <= queues * (ENTRIES - 1)
    assert busy.facts["names"] == ["virtio_net_tx_bh"]
    assert busy.facts["share"] > 0.9


def test_a_deep_queue_makes_workers_ask_many_times_for_one_run(
    qemu_binary: Path, tmp_path: Path
) -> None:
    trace, image = tmp_path / "t.parquet", qemu_binary.with_name("qemu-img")
    command = bench_command(image, disk_image(tmp_path), REQUESTS, depth=DEPTH)
    status, report, _err = qtrace_run("--all", "-o", trace, "--", *command)
    assert report["lost_events"] == 0
    assert ended_well(status, report)
    # How many come together is up to the host's scheduler: thousands mostly, once fewer than the
    # 1,000 that the lint has for everybody.
    (result,) = open_traces(trace).lint(["lost-schedule"], {"lost-schedule": TOGETHER})
    assert result.findings, result
    for lost in result.findings:
        assert lost.name == "thread_pool_completion_bh"
        assert lost.value >= TOGETHER
