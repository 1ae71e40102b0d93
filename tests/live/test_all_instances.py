"""What ``--all`` tells of each instance: its own, whatever its address, and how deep it ran."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtrace.analysis import open_traces
from qtrace.lab.block_load import bench_command, disk_image
from qtrace.lab.guest import Guest
from qtrace.trace.reader import read_trace
from tests.live.support.attached import attached
from tests.live.support.benched import qtrace_run

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

REQUESTS, ROUNDS = 503, 3


def test_an_address_that_is_used_again_is_another_instance(
    qemu_binary: Path, tmp_path: Path
) -> None:
    trace, image = tmp_path / "t.parquet", qemu_binary.with_name("qemu-img")
    command = bench_command(image, disk_image(tmp_path), REQUESTS, "-n")
    status, _report, err = qtrace_run("--all", "-o", trace, "--", *command)
    assert status == 0, err
    instances = open_traces(trace).instances
    # 7.2 stringifies the argument of blk_aio_complete_bh()'s caller, a variable.
    own = instances[instances["name"].isin(["blk_aio_complete_bh", "cb"])]
    assert len(own) == own["scheduled_row"].nunique() == own["ended_row"].nunique() == REQUESTS
    assert set(own["verdict"]) == {"main-loop"}
    # 32 requests are in flight: malloc() hands out the same few addresses again and again.
    assert own["bh"].nunique() < REQUESTS / 4
    # One after the other at the same address, each within its own time.
    for _bh, lives in own.sort_values("scheduled_ns").groupby("bh"):
        assert (lives["scheduled_ns"].iloc[1:].values >= lives["ended_ns"].iloc[:-1].values).all()


def test_the_depth_of_a_run_is_what_its_whole_stack_shows(
    qemu_binary: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "t.parquet"
    with (
        Guest(qemu_binary, firmware="idle") as guest,
        attached(guest.pid, "--all", "--stacks-every", 1, "-o", trace) as attach,
    ):
        disk = next(
            node["node-name"] for node in guest.qmp.command("query-named-block-nodes")
            if node["drv"] == "file"
        )  # fmt: skip
        for _ in range(ROUNDS):
            guest.qmp.command(
                "human-monitor-command", **{"command-line": f'qemu-io {disk} "read 0 4k"'}
            )
        status, _report, err = attach.end()
    assert status == 0, err
    frame = read_trace(trace).frame
    runs = frame[frame["event"] == "run"]
    stack = runs["stack"].astype(str)
    runs = runs[~stack.str.match(r"\[(partial|truncated|unreadable|coroutine)\]")]
    depth = runs["detail"].astype(str).str.extract(r'"depth":(\d+)')[0].astype(int)
    # Every run lies in an aio_bh_poll() of its own.
    shown = runs["stack"].astype(str).str.count(r";aio_bh_poll\+0x") - 1
    assert (depth == shown).all()
    # The monitor's command reads the disk and polls for it, inside do_qmp_dispatch_bh().
    inner = runs[depth == 1]
    assert (inner["name"] == "thread_pool_completion_bh").sum() == ROUNDS
    assert inner["stack"].astype(str).str.contains(";do_qmp_dispatch_bh+0x", regex=False).all()
    assert {0, 1} <= set(depth)
